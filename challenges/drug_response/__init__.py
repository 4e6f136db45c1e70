"""Drug response: a cell type's response to a compound it never met (Kaggle's OP2), by staged ensembles and their peers.

Read in this order; each file says in its first lines what comes in and what goes out.

1. `data`       Kaggle's files in, submissions out
2. `folds`      what is held out: validation in the shape of the test
3. `baselines`  zeros, means and their mixes: what every method must beat
4. `compounds`  what a compound gets that was never measured
5. `kernel`     the fast method: a Gaussian process over cell types and compounds
6. `networks`   the networks and their published hyper-parameters (`networks.tsv`)
7. `training`   how one network, or many at once, are trained
8. `ensemble`   a stage: many networks as one estimator
9. `fitted`     what a file holds: a method, or a weighted mean of several
10. `models`    all methods by name
11. `evaluate`  methods beside baselines, with intervals over compounds, and which to submit
12. `plots`     the picture
13. `__main__`  the command line: prepare, train, predict, repro, evaluate
"""
