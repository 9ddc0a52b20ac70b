"""A folder per stage: `spec` (keys, rules, the kind of record; no torch) and `run` (torch).

A spec has `Settings`, `KIND` and `RULES`, and where it is not the mean over trained tokens `UNIT = "samples"`;
`needs_reference(own)` where its loss reads the log-probabilities that the model gave before its first step. A run has
`loss(model, batch, own) -> Loss`, `own` being the stage's own keys; and `prepare(model, own)` where these change the
model (`registry.hook` finds it).
A stage with a spec alone can be planned and is refused by `train`.
"""
