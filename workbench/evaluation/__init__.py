"""What a method is worth on perturbations it has not seen; the commands `compare` and `cross_validate` stand on it.

Read in this order: `effects` (a table of effects, checked) -> `methods` (what is compared, and your own classes) ->
`folds` (fit without some perturbations, score on them) -> `intervals` (means with intervals, paired differences) ->
`verdicts` (does my table help?) -> `pictures`.
"""
