"""What `workbench.adopt` does to a screen, in the order data flow.

`labels` (how a cell's label is read) -> `values` (counts or normalised, and onto one scale) -> `source` (a file of the
screen) -> `cells` (which are kept) -> `files` (each cell is written to its place).
"""
