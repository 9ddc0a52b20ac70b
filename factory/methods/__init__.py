"""A folder per method: `spec` (keys, rules, parameter formulas; no torch), `run` (torch), `refusals.yaml` (words).

A spec has `Settings`, `QUANTIZABLE`, `RULES`, `trainable(method, arch)` and `optimizer_elements(method, shapes)`.
A run has `attach(model, settings, plan)` and `optimizer(model, settings, plan)`, and lists in `__all__` also
`pack_state` and `unpack_state` where its optimizer keeps more than tensors and numbers.
"""
