"""Modality prediction: from one modality of a cell to another (expression, accessibility, surface protein), both ways.

Read in this order: `data` (files in and out) -> `reduce` (sparse matrices to coordinates) -> `models` (baselines, ridge,
kernel ridge, neighbours) -> `adversarial` -> `evaluate`, `plots` -> `__main__` (the command line).
"""
