"""What is measured of a model beside its losses: benchmarks, answers against references; and the rows that tell of it.

`rows` is the format of a run's `evaluation/*.jsonl`, which two runs are compared by. Importing these needs no torch
unless they say so.
"""
