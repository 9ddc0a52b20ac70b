"""A folder per stage: `spec` (keys, rules, the kind of record; no torch) and `run` (torch).

A spec has `Settings` and `KIND`, and where it applies also (`registry.hook` finds it)
- `UNIT = "samples"` where its loss is not the mean over trained tokens,
- `parts_rows(own)`, true where its loss is by the length of a batch's rows, which then do not stand in one,
- `METRICS`, what else than the loss of held-out rows can say which model is best; higher is better,
- `heads(arch)`, the heads that it trains beside the language model's, by their tensors' names (`factory.plan.heads`),
- `resolved(own)`, its own keys with values in the place of those that are left open,
- `WRITES = False` where it does not read the language model's head, which is frozen then,
- `SEQUENCES = 2` where a sample is trained as two, and `JUDGED = 1` where one more goes forward only,
- `compares(own)`, true where the samples of a micro-batch change each other's loss: they stay as they were drawn then,
  and are not put side by side by their length,
- `READS`, what its loss reads of the decoder: `tokens` (their mean loss, as most), `answers` (sums of their
  log-probabilities) or `states` (one hidden state of each sequence),
- `needs_reference(own)` where its loss reads the log-probabilities that the model gave before its first step,
- `HEADS_START = "zero"` where its heads do not start at random, `notes(case)` that the plan shows, and `MEASURES`, what
  is measured before and after in a person's words.
One whose answers are sampled (`factory.rollouts`) also has `rows_per_step(own)`, `new_tokens(own)`,
`reads_reference(own)`, `rollout_bytes(own, arch, dtype, prompt)` and `reward_bytes(case, trained, frozen)`; and
`UNSCORED = True` where an answer may have no score, which is nan then.

A run has `loss(model, batch, own) -> Loss`, `own` being the stage's own keys; and `prepare(model, own)` where these
change the model; where pairs are scored, `scores(model, batch)`, a number for each answer. One whose batches are not
the data's own has `source(run, model, dataset, reward, first, last, position)`, an iterator of `steps.feed.Turn`;
`attach(run, model)`, which adds frozen tensors beside the trained; and `measure(run, model, dataset, reward, name)`,
the figures of the held-out rows.
A stage with a spec alone can be planned and is refused by `train`.
"""
