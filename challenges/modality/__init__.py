"""Modality prediction: from one modality of a cell to another (expression, accessibility, surface protein), both ways.

Read in this order; each file says in its first lines what comes in and what goes out.

1. `scale`      counts are recognised and normalised; training and test on one scale
2. `data`       paired `.h5ad` files in, aligned by name; a predicted modality out
3. `folds`      what is held out: known answers, whole batches, or cells
4. `baselines`  zeros, the mean of each feature, a random cell: what every method must beat
5. `reduce`     sparse matrices to coordinates, and back
6. `maps`       from coordinates to coordinates: ridge, kernel ridge, neighbours
7. `networks`   generator and critic of the adversarial methods
8. `training`   how they are trained
9. `models`     all methods by name
10. `evaluate`  methods beside baselines, with intervals over batches or cells
11. `plots`     the pictures
12. `__main__`  the command line: prepare, train, predict, evaluate
"""
