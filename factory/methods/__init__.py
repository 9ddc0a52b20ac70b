"""A folder per method: `spec` (keys, rules, parameter formulas; no torch), `run` (torch), `refusals.yaml` (words).

A spec has `Settings`, `QUANTIZABLE`, `RULES`, `trainable(method, arch)` and
`optimizer_bytes(method, optimizer, shapes, arch)`. Where it applies also
- `notes(method, arch)` that the plan shows,
- `gradients(method, shapes, arch)`, elements, where not all of them are there at once,
- `expanded(method, arch)` where the method adds layers,
- `starts_from_weights(method)` where a run has `initialize`.

A run has `attach(model, settings, plan, arch)` and `optimizer(model, settings, plan, arch)`. It lists in `__all__` also
- `begin_step(model, optimizer, settings, arch, step)` where what trains changes from step to step,
- `export(model, settings, folder)` of an adapter, and `go_on(model, path)` from a saved one,
- `initialize(model, settings, quantize, arch)` and `begin(model, first)` of one that starts from the whole weights.
"""
