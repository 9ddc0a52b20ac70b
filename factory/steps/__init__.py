"""The rooms of the executor: one module a step, each a function of the run and of what it takes."""
