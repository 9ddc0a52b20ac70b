"""A folder per stage: `spec` (keys, rules, the kind of record; no torch) and `run` (torch).

A spec has `Settings`, `KIND` and `RULES`. A run has `loss(model, batch)`, a sum over the trained tokens; and
`prepare(model, own)` where its own keys change the model (`registry.hook` finds it).
A stage with a spec alone can be planned and is refused by `train`.
"""
