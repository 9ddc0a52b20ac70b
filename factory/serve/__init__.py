"""An OpenAI-style API before a room (`factory.inference`).

`wire`: what clients send. `errors`: what they are told. `app`: the addresses. `answers`: events of the engine to
responses and streams. `images`: parts of messages that are pictures. `guard`: keys and sizes, before anything is read.
`metrics`: for Prometheus. `run`: listening, and the end of it.
"""
