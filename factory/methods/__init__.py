"""A folder per method: `spec` (keys, rules, parameter formulas; no torch), `run` (torch), `refusals.yaml` (words).

A spec has `Settings`, `QUANTIZABLE`, `RULES`, `trainable(method, arch)` and
`optimizer_bytes(method, optimizer, shapes, arch)`.
A run has `attach(model, settings, plan, arch)` and `optimizer(model, settings, plan, arch)`; it lists in `__all__` also
`pack_state` and `unpack_state` where its optimizer keeps more than tensors and numbers, and
`begin_step(model, optimizer, settings, arch, step)` where what trains changes from step to step.
"""
