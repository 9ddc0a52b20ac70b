"""A model's own processor, made of its files: what images, videos and sounds become, and how many tokens they are."""

import copy
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from factory.config.refusal import UserError, refuse
from factory.data.files import decoded, encoded, saved, write
from factory.data.media.audio import read_audio
from factory.data.media.read import read_image
from factory.data.media.video import Frames, Video, read_video
from factory.data.record import BadRow, Medium
from factory.plan.plan import Compiled

_processor_unknown = partial(
    refuse,
    "processor-unknown",
    because=(
        "how many tokens an image, a video or a sound has, and what the model sees and hears of it, is "
        "known from its processor only"
    ),
    fix=(
        "use a model whose processor transformers has (LLaVA, Idefics, Qwen-VL, PaliGemma, Gemma 3, "
        "InternVL, Llama 3.2 Vision …), or data of text only"
    ),
)

# by kind: what of the processor takes them, and under which name they are given
_PARTS = {
    "image": ("image_processor", "images"),
    "video": ("video_processor", "videos"),
    "audio": ("feature_extractor", "audio"),
}


@dataclass(frozen=True, slots=True)
class ProcessorSpec:
    """All that a processor is made of, in parts that can be sent to another process and hashed.

    `kind` is the model's type; `files` are the processor's, `tokenizer` those of the saved tokenizer, in base64.
    """

    kind: str
    files: dict[str, str]
    tokenizer: dict[str, str]
    frames: Frames | None

    def processor(self, tokenizer_json: str | None) -> "Processor":
        """`tokenizer_json`: a fast tokenizer's, which is not among the files."""
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), decoded(self.tokenizer))
            if tokenizer_json is not None:
                (Path(folder) / _TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
            tokenizer = AutoTokenizer.from_pretrained(folder)
        return self.processor_of(tokenizer)

    def processor_of(self, tokenizer: Any) -> "Processor":
        return Processor(decoded(self.files), self.kind, tokenizer, self.frames)


_TOKENIZER = "tokenizer.json"


def frames_of(plan: Compiled) -> Frames | None:
    """Return what is seen of a video; None: the model takes none."""
    data = plan.settings.data
    return Frames(fps=data.video_fps, most=data.video_frames) if plan.steps.pack.videos else None


def processor_spec(
    kind: str, processor: Mapping[str, bytes], tokenizer: Any, frames: Frames | None = None
) -> ProcessorSpec | None:
    """Of a model type, its processor's files and a transformers tokenizer; None where there is no processor."""
    if not processor:
        return None
    files = {name: encoded(content) for name, content in sorted(processor.items())}
    return ProcessorSpec(kind, files, saved(tokenizer, leave=_TOKENIZER if tokenizer.is_fast else ""), frames)


class Processor:
    """transformers' own, with a copy of this tokenizer, and what it is given: `frames` of videos, waves of sounds.

    Raises UserError where transformers has none, or a package is missing.
    """

    def __init__(self, files: Mapping[str, bytes], kind: str, tokenizer: Any, frames: Frames | None = None):
        self._files, self._frames = files, frames
        self.own = _checked(lambda: _made(files, kind, copy.deepcopy(tokenizer)), len(tokenizer))
        self.name = type(self.own).__name__

    @property
    def tokenizer(self) -> Any:
        return self.own.tokenizer

    @cached_property
    def tokens(self) -> dict[str, str]:
        """What stands for each kind that it takes, in a text that it is given."""
        there = self.own.get_attributes()
        found = {kind: getattr(self.own, f"{kind}_token", None) for kind, (part, _) in _PARTS.items() if part in there}
        if self._frames is None:  # the plan knows nothing of videos
            found.pop("video", None)
        return {kind: token for kind, token in found.items() if token is not None}

    @cached_property
    def ids(self) -> list[int]:
        """The tokens that stand for a piece of something."""
        found = [getattr(self.own, f"{kind}_token_ids", ()) for kind in _PARTS]
        return [id for ids in found for id in ids if id is not None]

    def read(self, medium: Medium) -> Any:
        """What it is given of it. Raises BadRow."""
        if medium.kind == "image":
            return read_image(medium.place)
        if medium.kind == "video":
            frames = self._frames
            assert frames is not None, "without them no video has a token"
            return _packaged(lambda: read_video(medium.place, frames))
        heard = self.own.feature_extractor
        return _packaged(lambda: read_audio(medium.place, heard.sampling_rate, getattr(heard, "chunk_length", None)))

    def __call__(self, kind: str, text: Sequence[str], rows: Sequence[Sequence[Any]], **options: Any) -> Any:
        """What it makes of texts and of what is shown in each, all of one kind."""
        return self.all(text, {kind: rows}, **options)

    def all(self, text: Sequence[str], rows: Mapping[str, Sequence[Sequence[Any]]], **options: Any) -> Any:
        """The same of several kinds."""
        given: dict[str, Any] = {_PARTS[kind][1]: [list(row) for row in each] for kind, each in rows.items()}
        if "video" in rows:
            self._take_videos()
            films: list[Video] = [film for row in rows["video"] for film in row]
            given["videos"] = [film.frames for film in films]
            given |= {"video_metadata": [film.metadata() for film in films], "do_sample_frames": False}
            options = {"return_tensors": "pt"} | options  # some count the frames of no list
        if "audio" in rows:
            given["audio"] = [wave for row in rows["audio"] for wave in row]
            given["sampling_rate"] = self.own.feature_extractor.sampling_rate
        try:
            return self.own(text=list(text), add_special_tokens=False, **given, **options)
        except ValueError as error:  # of a film of one frame, of an image that is a line
            raise BadRow(f"the processor does not take it: {str(error)[:_REASON]}") from None

    def _take_videos(self) -> None:
        """It needs torchvision, and images do not."""
        if self.own.video_processor is not None:
            return
        self.own.video_processor = made = _known(lambda: _read("AutoVideoProcessor", self._files))
        if getattr(made, _CAPPED, False) is None:  # transformers warns: the reference implementation does it
            setattr(made, _CAPPED, True)


_REASON = 120  # characters
_CAPPED = "cap_pixels_per_frame"  # of Qwen-VL: a frame's share of the pixels of all (docs/decisions/0030-videos.md)


def _known(make: Any) -> Any:
    """Raises UserError where a package is missing, or the files are not what transformers reads."""
    try:
        return _packaged(make)
    except UserError:
        raise
    except (ValueError, OSError, LookupError, TypeError, AttributeError, RecursionError) as error:
        wrong = f"transformers cannot make it of its files ({type(error).__name__}: {str(error)[:_REASON]})"
        raise _processor_unknown("model.path", wrong) from None


def _packaged(make: Any) -> Any:
    """Raises UserError where a package is missing."""
    try:
        return make()
    except ImportError as error:
        package = error.name or _package(str(error))
        raise refuse(
            "processor-package",
            "model.path",
            f"its processor needs {package}",
            because="images, videos and sounds are processed as the model was trained on them, by its own processor",
            fix=f"install it: pip install {package}",
            machine=True,
        ) from None


def _package(message: str) -> str:
    """Which one an ImportError of transformers names, in either of its ways."""
    found = re.search(r"requires the (\w+) library|`(\w+)`", message)
    assert found, message
    return (found[1] or found[2]).lower()


def _checked(make: Any, known: int) -> Any:
    made = _known(make)
    if len(made.tokenizer) != known:  # some add tokens to theirs, or change its settings
        new = len(made.tokenizer) - known
        raise refuse(
            "processor-tokens",
            "model.path",
            f"its processor adds {new:,} tokens that its tokenizer lacks",
            because="the model has no embedding for them",
            fix="use a copy of the model whose tokenizer is that of its processor",
        )
    return made


# what reads a part from its files; the one of videos waits for the first
_READ = {
    "image_processor": ("AutoImageProcessor", {"backend": "pil"}),
    "feature_extractor": ("AutoFeatureExtractor", {}),
}


def _made(files: Mapping[str, bytes], kind: str, tokenizer: Any) -> Any:
    cls = _without_videos(_class(files, kind))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), files)
        said, more = cls.get_processor_dict(folder)
    names = cls.get_attributes()
    parts: dict[str, Any] = {"tokenizer": tokenizer, "video_processor": None}
    parts |= {name: _read(_READ[name][0], files, **_READ[name][1]) for name in names if name in _READ}
    return cls.from_args_and_dict([parts[name] for name in names], said, **more)


def _read(auto: str, files: Mapping[str, bytes], **options: Any) -> Any:
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), files)
        return getattr(transformers, auto).from_pretrained(folder, **options)


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
    raise _processor_unknown("model.path", f"transformers has no {named[0] if named else f'processor for {kind}'}")


def _without_videos(cls: Any) -> Any:
    """The class, which takes None for what processes videos: that needs torchvision, and images do not."""

    def check(self: Any, name: str, part: Any) -> Any:
        return None if part is None else super(made, self).check_argument_for_proper_class(name, part)

    made: Any = type(cls.__name__, (cls,), {"check_argument_for_proper_class": check})
    return made
