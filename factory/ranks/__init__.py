"""The processes of a run: who they are, what they tell each other, how they share weights, gradients and optimizer.

`spec` (no torch) says what each strategy is given and what it splits; `world` is the processes' talk; `__main__` starts
them; `ways` and the engines run the model. Strategies: ddp is torch's DistributedDataParallel, fsdp its `fully_shard`
(FSDP2), zero1 to zero3 are DeepSpeed's.
"""
