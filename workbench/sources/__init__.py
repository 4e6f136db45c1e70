"""Public knowledge of genes, fetched at home into `resources/`, with which it travels: `python -m workbench.sources`.

Read in this order: `catalogue` (what there is) -> `fetch` -> `convert` -> `record` (credit) -> `steps` -> `__main__`.
"""
