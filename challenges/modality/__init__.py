"""Modality prediction: from one modality of a cell to another (expression, accessibility, surface protein), both ways.

Read in this order; each file says in its first lines what comes in and what goes out.

1. `data`       paired `.h5ad` files in, aligned by name; a predicted modality out
2. `folds`      what is held out: known answers, whole batches, or cells
3. `baselines`  zeros, the mean of each feature, a random cell: what every method must beat
4. `reduce`     sparse matrices to coordinates, and back
5. `maps`       from coordinates to coordinates: ridge, kernel ridge, neighbours
6. `networks`   generator and critic of the adversarial methods
7. `training`   how they are trained
8. `models`     all methods by name
9. `evaluate`   methods beside baselines, with intervals over batches or cells
10. `plots`     the pictures
11. `__main__`  the command line: prepare, train, predict, evaluate
"""
