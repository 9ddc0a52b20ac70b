"""GGUF files: the look at them, and transformers' reader as the process beside it asks it."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from factory.plan.inspect import model, walked
from factory.steps import walk
from fuzz.mutation import changed


def opened(folder: Path) -> Callable[[random.Random], str]:
    file = folder / "tiny.gguf"
    content = _written(folder / "seed.gguf")
    end = content.index(b"token_embd") + 200

    def case(chance: random.Random) -> str:
        head = changed(content[:end], chance)
        if len(head) > 20 and chance.random() < 0.3:  # a number in the header, made large or negative
            at = chance.randrange(4, len(head) - 8)
            head = head[:at] + struct.pack("<q", chance.choice((-1, 2**62, 2**40, 2**31, 1, 0))) + head[at + 8 :]
        file.write_bytes(head + content[end:])
        if chance.random() < 0.9:
            with mock.patch.object(model, "gguf_config", lambda _: {}):
                model._gguf(file, str(file))
            return "looked at"
        with mock.patch.object(walked, "_ask", _asked):
            found = model._gguf(file, str(file))
        json.dumps(found.config)
        return "read"

    return case


def _asked(what: str, asked: dict[str, object]) -> dict[str, object]:
    assert what == "gguf"
    try:
        found, problem = walk._gguf(asked)
    except Exception as error:  # the process beside it ends, which is told
        found, problem = None, str(error)
    return json.loads(json.dumps({"found": found, "problem": problem}))


def _written(file: Path) -> bytes:
    import numpy as np
    from gguf import GGUFWriter

    made = GGUFWriter(file, "llama")
    made.add_block_count(1)
    made.add_context_length(64)
    made.add_embedding_length(8)
    made.add_feed_forward_length(16)
    made.add_head_count(2)
    made.add_head_count_kv(1)
    made.add_layer_norm_rms_eps(1e-5)
    made.add_vocab_size(4)
    made.add_tokenizer_model("gpt2")
    made.add_token_list(["a", "b", "c", "<|im_end|>"])
    made.add_token_merges(["a b"])
    made.add_eos_token_id(3)
    made.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}")
    made.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return file.read_bytes()
