"""One room where models write: prompts to tokens to text, for chat, for serve, and for whoever asks in a program.

- `types`: what every engine is: `generate`, `batch`, `stop`, `count`. No torch.
- `embedded`: engine=transformers, with `scheduler` (who writes when), `slots` (the keys and values of those who write)
  and `draw` (logits to a token).
- `vllm_engine`: engine=vllm.
- `prompts`: messages to the tokens that training saw for them; `text`: tokens to text, stop texts; `calls`: tool calls.
- `room`: all of it together for one plan; `asked`: the command line of a verb that writes.
"""
