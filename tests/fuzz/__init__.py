"""Fuzzers: valid input, changed by chance, for everything that Factory reads from others.

    make fuzz                                     # every target, ten thousand cases each
    make fuzz CASES=100000 TARGETS=rows,requests  # these, a hundred thousand
    PYTHONPATH=tests:. python -m fuzz plans 1 --first 4711   # one case again

A target is a module here with `opened(folder)`: it makes what its cases share and gives a function of a
`random.Random` that runs one case. A case is the function of its target's name and its number alone, so it comes again.
It ends in a value or in the product's own error (UserError; of the server, an answer of status 4xx); all else is a
fault: another exception, ten seconds of CPU time, two gigabytes, a file written or removed outside the case's folder,
a program started, a pickle's class looked up, a module imported that the input names (`guard`).

Changes are made by `mutation` rather than by hypothesis, which draws values of a shape and cannot start from a file
that is valid: there all but a few of the cases would end at the first check.
"""

TARGETS = (
    "adapters",
    "catalogues",
    "config_files",
    "gguf",
    "models",
    "overrides",
    "plans",
    "requests",
    "rows",
    "templates",
    "tokenizers",
    "train_files",
)
