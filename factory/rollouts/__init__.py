"""What the stages share that learn from answers which the model samples itself: `ppo` and `grpo`.

`spec` has their common keys and rules (no torch), `sample` the sampling, `roles` the one base's turns as policy,
reference and reward model, `rolled` what a batch of answers is measured to be, `turns` the steps that the loop trains.
"""
