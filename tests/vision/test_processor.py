"""A trained model that sees is saved with its processor, and is read by the classes that see."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sights
import tiny
import torch
from transformers import AutoProcessor, AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor

from factory.steps.load import PROCESSOR_FILES, read_processor

SHORT = ("stage.max_steps=1", "data.max_samples=8", "data.max_length=64", "stage=pt", "precision=fp32")
METHODS = {"lora": ("method=lora", "method.rank=2"), "full": ("method=full",)}


def notes(done: Any) -> list[str]:
    events = [json.loads(line) for line in done.run.folder.events.read_text().splitlines()]
    return [event["text"] for event in events if event["event"] == "note"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    sights.built("llava", vocab_size=512, max_position_embeddings=256).save_pretrained(tmp_path / "base")
    images: Any = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=8)
    LlavaProcessor(images, tiny.tokenizer(), patch_size=2).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("method", METHODS)
def test_the_saved_model_is_read_with_its_processor(method: str, base: Path, execute: Callable[..., Any]) -> None:
    done = execute(f"model.path={base}", *METHODS[method], *SHORT)
    folder = done.run.folder.model
    read: Any = AutoProcessor.from_pretrained(folder)
    assert isinstance(read, LlavaProcessor)
    assert (read.patch_size, read.image_processor.size["shortest_edge"]) == (2, 8)
    own = tiny.tokenizer()
    for tokenizer in (read.tokenizer, AutoTokenizer.from_pretrained(folder)):
        assert tokenizer.get_vocab() == own.get_vocab()
        assert (tokenizer.chat_template, tokenizer.eos_token) == (own.chat_template, own.eos_token)
    there = {name for name in PROCESSOR_FILES if (base / name).is_file()}
    assert there
    assert all((folder / name).read_bytes() == (base / name).read_bytes() for name in there)
    assert not [text for text in notes(done) if "processor" in text]


def test_images_go_through_the_saved_processor_and_model(base: Path, execute: Callable[..., Any]) -> None:
    """As a user would: a picture and a text that names it, to the reloaded model."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText

    folder = execute(f"model.path={base}", *METHODS["full"], *SHORT).run.folder.model
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor: Any = AutoProcessor.from_pretrained(folder)
    picture = Image.linear_gradient("L").convert("RGB").resize((16, 12))
    seen = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    assert seen.shape == (1, 3, 8, 8)
    ids = torch.tensor([[5] + [sights.IMAGE] * sights.PATCHES + [6, 7]])
    logits = [model(input_ids=ids, pixel_values=pixels).logits for pixels in (seen, -seen)]
    assert not torch.equal(*logits)


def test_a_source_without_one_is_told_of(base: Path, execute: Callable[..., Any]) -> None:
    for name in PROCESSOR_FILES:
        (base / name).unlink(missing_ok=True)
    done = execute(f"model.path={base}", *METHODS["lora"], *SHORT)
    assert "No processor of this model was found: only its tokenizer is saved with it." in notes(done)
    assert not any((done.run.folder.model / name).exists() for name in PROCESSOR_FILES)


def test_a_model_of_text_alone_has_none(execute: Callable[..., Any]) -> None:
    done = execute(*METHODS["lora"], *SHORT)
    assert not [text for text in notes(done) if "processor" in text]
    assert not any((done.run.folder.model / name).exists() for name in PROCESSOR_FILES)


def test_a_hub_models_files_come_from_its_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One is there, one is not in the repository; of the third the hub, which cannot be reached, would know."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    (tmp_path / "cached").write_bytes(b"{}")
    asked: list[tuple[str, str, str | None]] = []

    def download(path: str, name: str, *, revision: str | None) -> str:
        asked.append((path, name, revision))
        if len(asked) == 2:
            raise EntryNotFoundError("it is not in the repository")
        if len(asked) == 3:
            raise LocalEntryNotFoundError("it is not in the cache")
        return str(tmp_path / "cached")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert read_processor("someone/model", "abc") == {PROCESSOR_FILES[0]: b"{}"}
    assert asked == [("someone/model", name, "abc") for name in PROCESSOR_FILES]
