"""Rows of data: files of every kind, rows of every format brought to tokens, and the images that they name."""

import base64
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import fuzz_files
import tiny
from conftest import compiled

from factory.data.encoding import encoding_of, spec_of
from factory.data.formats import FORMATS
from factory.data.media import read_image, read_video
from factory.data.media.audio import read_audio
from factory.data.media.video import Frames
from factory.data.prepare.workers import Aligning, Block, encode
from factory.data.record import BadRow, Kind
from fuzz.mutation import EXTREMES, changed, twisted

_CALL = {"name": "look_up", "arguments": {"x": 1}}
_TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": _CALL}]},
    {"role": "tool", "content": "2", "name": "look_up"},
    {"role": "assistant", "content": "Hello.", "weight": 1.0},
]
_SHARED = [{"from": "human", "value": "Hi <image>"}, {"from": "gpt", "value": "Hello."}]
_TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "x", "parameters": {"type": "object"}}}]
_SEEDS: list[dict[str, Any]] = [
    {"text": "It is one."},
    {"instruction": "Say one.", "input": "x", "output": "one", "system": "s", "history": [["a", "b"]]},
    {"conversations": _SHARED, "system": "s", "tools": json.dumps(_TOOLS), "images": ["a.png"]},
    {"messages": _TALK, "tools": _TOOLS},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "x"}]},
            _TALK[-1],
        ]
    },
    {"prompt": "Say one.", "completion": "one"},
    {"prompt": _TALK[:2]},
    {"prompt": "Say one.", "chosen": "one", "rejected": "two"},
    {"chosen": _TALK[1:2] + _TALK[-1:], "rejected": _TALK[1:2] + _TALK[-1:]},
    {"conversations": _SHARED[:1], "chosen": _SHARED[1], "rejected": _SHARED[1]},
    {"prompt": _TALK[1:2], "completion": _TALK[-1:], "label": True},
]


def opened(folder: Path) -> Callable[[random.Random], str]:
    model = tiny.save(folder / "llama")
    plan = compiled(f"model.path={model}", "hardware=cpu", "tracking=none", "data.max_samples=8")
    encoders = {kind: spec_of(tiny.tokenizer(), encoding_of(plan), kind).encoder for kind in get_args(Kind)}
    encoders["prompts"] = encoders["messages"]
    files = {kind: whole() for kind, (whole, _) in _READ.items()}
    os.mkfifo(folder / "pipe")

    def case(chance: random.Random) -> str:
        what = chance.random()
        if what < 0.2:
            return fuzz_files.check(chance.getrandbits(30), folder)
        if what < 0.3:
            kind = chance.choice(list(files))
            return _medium(chance, kind, files[kind], folder)
        format = chance.choice(sorted(FORMATS))
        rows = [twisted(seed, chance) for seed in chance.sample(_SEEDS, 3)]
        rows = [row for row in rows if isinstance(row, dict) and _in_a_file(row)]
        aligning = Aligning(format=format, columns={}, tags={}, folder=str(folder))
        found = encode(encoders[FORMATS[format].kind], Block(aligning, 0, rows))
        assert len(found.encoded) + len(found.bad) == len(rows)
        return "encoded" if found.encoded else "refused"

    return case


def _in_a_file(row: dict[str, Any]) -> bool:
    """What every reader refuses does not come this far."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _pictures() -> list[bytes]:
    from PIL import Image

    found = []
    for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        file = io.BytesIO()
        Image.radial_gradient("L").resize((24, 16)).convert("RGB").save(file, form)
        found.append(file.getvalue())
    return found


def _films() -> list[bytes]:
    import av
    import numpy as np

    found = []
    for form, codec, pixels in (
        ("mp4", "mpeg4", "yuv420p"),
        ("matroska", "ffv1", "bgr0"),
        ("avi", "mjpeg", "yuvj420p"),
    ):
        file = io.BytesIO()
        with av.open(file, "w", format=form) as film:
            stream = film.add_stream(codec, rate=4)
            stream.width, stream.height, stream.pix_fmt = 32, 16, pixels
            for shade in range(0, 240, 40):
                shown = np.full((16, 32, 3), shade, np.uint8)
                film.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
            film.mux(stream.encode())
        found.append(file.getvalue())
    return found


def _sounds() -> list[bytes]:
    import av
    import numpy as np

    found = []
    for form, codec in (("wav", "pcm_s16le"), ("flac", "flac"), ("matroska", "aac")):
        file = io.BytesIO()
        with av.open(file, "w", format=form) as sound:
            stream = sound.add_stream(codec, rate=8000, layout="mono")
            kind = "fltp" if codec == "aac" else "s16"
            wave = np.sin(np.arange(2048) / 9)
            values = wave.astype(np.float32) if kind == "fltp" else (wave * 9999).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(values[None], format=kind, layout="mono")
            frame.sample_rate = 8000
            sound.mux(stream.encode(frame))
            sound.mux(stream.encode())
        found.append(file.getvalue())
    return found


# by kind: whole files, and what reads one
_READ: dict[str, tuple[Callable[[], list[bytes]], Callable[[str], Any]]] = {
    "image": (_pictures, read_image),
    "video": (_films, lambda place: read_video(place, Frames(fps=2.0, most=8))),
    "audio": (_sounds, lambda place: read_audio(place, 16000, 30)),
}


def _medium(chance: random.Random, kind: str, whole: list[bytes], folder: Path) -> str:
    content = changed(chance.choice(whole), chance)
    match chance.randrange(4):
        case 0:
            place = f"data:{kind}/any;base64," + base64.b64encode(content).decode()
        case 1:
            (folder / f"a.{kind}").write_bytes(content)
            place = str(folder / f"a.{kind}")
        case 2:
            place = chance.choice(
                (str(folder / "pipe"), "/dev/zero", "/dev/tty", "/proc/self/environ", str(folder), "file:///dev/random")
            )
        case _:
            place = str(chance.choice(EXTREMES))
    try:
        _READ[kind][1](place)
    except BadRow:
        return "refused"
    return f"a {kind}"
