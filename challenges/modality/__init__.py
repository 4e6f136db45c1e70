"""Modality prediction: from one modality of a cell to another (expression, accessibility, surface protein), both ways.

Read in this order: `data` (files in and out) -> `reduce` (sparse matrices to coordinates) -> `maps` (ridge, kernel
ridge, neighbours) -> `adversarial` -> `models` (all by name) -> `evaluate`, `plots` -> `__main__` (the command line).
"""
