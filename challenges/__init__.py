"""The sister systems, one folder each. They use torch, which the crunch never needs. README.md shows them at work.

Each has the same files for the same roles (`data`, `folds`, `baselines`, `networks`, `training`, `models`, `evaluate`,
`plots`, `__main__`), and `__init__` lists the order to read them in. `common` is what they share.
"""
