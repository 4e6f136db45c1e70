"""Drug response: a cell type's response to a compound it never met (Kaggle's OP2), by staged ensembles and their peers.

Read in this order: `data` (files in and out) -> `folds` (validation in the shape of the test) -> `baselines`, `kernel`,
`networks` (one fit) -> `ensemble` (stages) -> `evaluate`, `plots` -> `__main__` (the command line).
"""
