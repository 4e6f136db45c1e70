"""The page RESULTS.md, by one command: `python -m workbench.results`.

Read in this order: `data` (effects, priors, ceilings) -> `benchmarks`, `cells` -> `page` (how they read) -> `__main__`.
"""
