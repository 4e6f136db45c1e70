"""Synthetic cells: a conditional GAN that draws believable cells of a named type, or between two types.

Read in this order; each file says in its first lines what comes in and what goes out.

1. `data`       labelled cells in, synthetic cells out
2. `folds`      what is held out: a share of each type
3. `baselines`  real cells, copies, genes without correlation: what every generator is measured beside
4. `scale`      which scale a matrix is on, and the counts behind it
5. `start`      the closed form that the generator starts from
6. `networks`   generator and discriminators
7. `calibrate`  the start is moved until its moments are right
8. `training`   adversarial training, with checkpoints
9. `models`     the generators by name: `start` and `gan`
10. `evaluate`  synthetic cells beside held-out real ones
11. `mixing`    mixtures of types: how they are written, and where they lie
12. `plots`     the pictures
13. `main_job`  the generator in the crunch's own job
14. `__main__`  the command line: prepare, train, sample, evaluate
"""
