"""A folder per method: `spec` (keys, rules, parameter formulas; no torch), `run` (torch).

A spec has `Settings`, `trainable(method, arch)` and
`optimizer_bytes(method, optimizer, shapes, arch, size)`. Where it applies also (`registry.hook` finds it)
- `notes(method, arch)` that the plan shows, and `shown(settings)`, those of its keys that it shows; else all,
- `at_end(method)`, in words what of the model is so only when all steps were made, None where nothing is,
- `gradients(method, shapes, arch)`, elements, where not all of them are there at once,
- `kept(method, shapes, arch, train)`, bytes of what gradients become as soon as they are whole, by tensor,
- `copied(method, shapes, arch, mixed)`, elements, where weights stay in the frozen type and float32 copies are stepped,
- `unfit(optimizer)`, the reason why an optimizer cannot step what it trains, or None,
- `expanded(method, arch)` where the method adds layers,
- `starts_from_weights(method)` where a run has `initialize`,
- `attaches_to_shares(method)`, whether it reads no weight when it is attached; without it each rank reads all weights,
- `trains_over(method, library, bits)`, whether linear layers may stay quantized so; without it they may not at all,
- `going_on(method, adapter)`, the settings with what a saved adapter's adapter_config.json says of its shapes,
- `peft(method, arch)` of an adapter, what its adapter_config.json must say to go on from it,
- `ANY_ADAPTER` where a saved adapter is taken as it is, whichever method's,
- `written(method)`, the settings that the saved adapter has, where it is saved as another than was trained,
- `saved(method, arch)`, its tensors as PEFT saves them, where these are not those of `trainable` under other names,
- `RANKS` where several processes cannot share a run in every way: `whole` where its optimizer reads whole gradients,
  which some strategies split, `alone` where it also chooses or draws by itself what it updates, and
- `BY_STEP`, in words what it does by the number of the step, where a step must be one update.

A run has `attach(model, settings, plan, arch)` and `optimizer(model, settings, plan, arch)`, and where it applies
- `begin_step(optimizer, settings, step, total)` where what trains changes from step to step,
- `penalty(model, settings)`, a number whose gradient is added to the loss's once in each step,
- `export(model, settings, folder)` of an adapter, and `go_on(model, path)` from a saved one: the model with it,
- `initialize(model, settings, quantize, arch)`, whose result `begin(model, started)` is given, of one that starts from
  the whole weights, and `taken(model, settings)`: the scale and the pairs B, A that it took out of them.
"""
