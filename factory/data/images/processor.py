"""A vision model's own processor, made of its files: the one that works with PIL alone."""

import base64
import copy
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from factory.refusal import refuse


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """All that a processor is made of, in parts that can be sent to another process and hashed.

    `kind` is the model's type; `files` are the processor's, `tokenizer` those of the saved tokenizer, in base64.
    """

    kind: str
    files: dict[str, str]
    tokenizer: dict[str, str]

    def processor(self, tokenizer_json: str | None) -> Any:
        """`tokenizer_json`: a fast tokenizer's, which is not among the files."""
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), {name: base64.b64decode(content) for name, content in self.tokenizer.items()})
            if tokenizer_json is not None:
                (Path(folder) / _TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
            tokenizer = AutoTokenizer.from_pretrained(folder)
        return self.processor_of(tokenizer)

    def processor_of(self, tokenizer: Any) -> Any:
        files = {name: base64.b64decode(content) for name, content in self.files.items()}
        return read_processor_object(files, self.kind, tokenizer)

    def maker(self, tokenizer_json: str | None) -> Callable[[], Any]:
        return partial(self.processor, tokenizer_json)


_TOKENIZER = "tokenizer.json"


def image_spec(kind: str, processor: Mapping[str, bytes], tokenizer: Any) -> ImageSpec | None:
    """Of a model type, its processor's files and a transformers tokenizer; None where there is no processor."""
    if not processor:
        return None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        saved = {
            str(path.relative_to(folder)): _text(path.read_bytes())
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file() and not (tokenizer.is_fast and path.name == _TOKENIZER)
        }
    return ImageSpec(kind, {name: _text(content) for name, content in sorted(processor.items())}, saved)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read_processor_object(files: Mapping[str, bytes], kind: str, tokenizer: Any) -> Any:
    """The processor with a copy of this tokenizer, of a model of type `kind`. Videos are not read.

    Raises UserError where transformers has none, or a package is missing.
    """
    tokenizer = copy.deepcopy(tokenizer)  # some add tokens to theirs, or change its settings
    known = len(tokenizer)
    try:
        made = _made(files, kind, tokenizer)
    except ImportError as error:
        package = error.name or _package(str(error))
        raise refuse("processor-package", "model.path", f"its processor needs {package}", package=package) from None
    if len(made.tokenizer) != known:
        new = len(made.tokenizer) - known
        raise refuse("processor-tokens", "model.path", f"its processor adds {new:,} tokens that its tokenizer lacks")
    return made


def _package(message: str) -> str:
    """Which one an ImportError of transformers names, in either of its ways."""
    found = re.search(r"requires the (\w+) library|`(\w+)`", message)
    assert found, message
    return (found[1] or found[2]).lower()


def _made(files: Mapping[str, bytes], kind: str, tokenizer: Any) -> Any:
    from transformers import AutoImageProcessor

    cls = _without_videos(_class(files, kind))
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), files)
        parts: dict[str, Any] = {"tokenizer": tokenizer, "video_processor": None}
        parts["image_processor"] = AutoImageProcessor.from_pretrained(folder, backend="pil")
        said, more = cls.get_processor_dict(folder)
        return cls.from_args_and_dict([parts[name] for name in cls.get_attributes()], said, **more)


def _class(files: Mapping[str, bytes], kind: str) -> Any:
    """As the files name it, else as transformers has it for the model's type."""
    from transformers import CONFIG_MAPPING, PROCESSOR_MAPPING
    from transformers.models.auto.processing_auto import processor_class_from_name

    said = [json.loads(content) for name, content in sorted(files.items(), reverse=True) if name.endswith(".json")]
    named = [each["processor_class"] for each in said if each.get("processor_class")]
    if named and (found := processor_class_from_name(named[0])):
        return found
    if not named and kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] in PROCESSOR_MAPPING:
        return PROCESSOR_MAPPING[CONFIG_MAPPING[kind]]
    raise refuse(
        "processor-unknown", "model.path", f"transformers has no {named[0] if named else f'processor for {kind}'}"
    )


def _without_videos(cls: Any) -> Any:
    """The class, which takes None for what processes videos: that needs torchvision, and its tokens do not."""

    def check(self: Any, name: str, part: Any) -> Any:
        return None if part is None else super(made, self).check_argument_for_proper_class(name, part)

    made: Any = type(cls.__name__, (cls,), {"check_argument_for_proper_class": check})
    return made
