"""A folder per stage: `spec` (keys, rules, the kind of record; no torch) and `run` (examples, loss; torch).

A spec has `Settings`, `KIND` and `RULES`. A run has `examples(records, tokenizer, pack)` and `loss(model, batch)`.
A stage with a spec alone can be planned and is refused by `train`.
"""
