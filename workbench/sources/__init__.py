"""Public knowledge of genes, fetched at home: into `resources/`, from where it travels with the submission.

python -m workbench.sources list                 what there is
python -m workbench.sources get reactome string  fetch, convert, record
"""
