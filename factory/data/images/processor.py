"""A vision model's own processor, made of its files: the one that works with PIL alone."""

import copy
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.data.files import decoded, encoded, saved, write
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
            write(Path(folder), decoded(self.tokenizer))
            if tokenizer_json is not None:
                (Path(folder) / _TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
            tokenizer = AutoTokenizer.from_pretrained(folder)
        return self.processor_of(tokenizer)

    def processor_of(self, tokenizer: Any) -> Any:
        return read_processor_object(decoded(self.files), self.kind, tokenizer)


_TOKENIZER = "tokenizer.json"


def image_spec(kind: str, processor: Mapping[str, bytes], tokenizer: Any) -> ImageSpec | None:
    """Of a model type, its processor's files and a transformers tokenizer; None where there is no processor."""
    if not processor:
        return None
    files = {name: encoded(content) for name, content in sorted(processor.items())}
    return ImageSpec(kind, files, saved(tokenizer, leave=_TOKENIZER if tokenizer.is_fast else ""))


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
        write(Path(folder), files)
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
