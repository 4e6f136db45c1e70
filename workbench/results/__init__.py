"""The page RESULTS.md, by one command: `python -m workbench.results`.

Read in this order: `data` (real effects, priors, ceilings) -> `__main__` (the benchmarks) -> `page` (how they read).
"""
