"""A model that hears is trained on text, saved with its processor, and hears again as it is read anew."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sights
import tiny
import torch
from conftest import refusals
from transformers import AutoModelForMultimodalLM, AutoProcessor, Qwen2AudioProcessor, WhisperFeatureExtractor

from factory.steps.load import PROCESSOR_FILES

KIND = "qwen2_audio"
MARK, RATE = "<|AUDIO|>", 16000
SHORT = ("stage.max_steps=2", "data.max_samples=8", "data.max_length=64", "stage=pt", "precision=fp32")
METHODS = {
    "lora": ("method=lora", "method.rank=2"),
    "full": ("method=full",),
    "freeze": ("method=freeze", "method.num_layers=1"),
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Its spectrograms are of one second, in as many frames as the tower takes."""
    known = copy.deepcopy(tiny.tokenizer())
    known.add_special_tokens({"additional_special_tokens": [MARK]})
    model = sights.built(KIND, vocab_size=len(known), max_position_embeddings=256)
    model.config.audio_token_index = known.convert_tokens_to_ids(MARK)
    model.save_pretrained(tmp_path / "base")
    ears = WhisperFeatureExtractor(feature_size=sights.BINS, chunk_length=1, hop_length=RATE // sights.FRAMES)
    Qwen2AudioProcessor(ears, known, chat_template=known.chat_template).save_pretrained(tmp_path / "base")
    known.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def heard(folder: Path, model: Any) -> torch.Tensor:
    """The logits after a tone of a third of a second and a text."""
    processor: Any = AutoProcessor.from_pretrained(folder)
    tone = np.sin(np.arange(RATE // 3) / 7).astype(np.float32)
    given = processor(text=[f"{MARK} low"], audio=[tone], sampling_rate=RATE, return_tensors="pt")
    assert given["input_features"].shape == (1, sights.BINS, sights.FRAMES)
    with torch.no_grad():
        return model.eval()(**given).logits[0, -1]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_hears(method: str, base: Path, execute: Callable[..., Any]) -> None:
    from peft import PeftModel

    done = execute(f"model.path={base}", *METHODS[method], *SHORT)
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    folder = done.run.folder.model
    there = {name for name in PROCESSOR_FILES if (base / name).is_file()}
    assert there and all((folder / name).read_bytes() == (base / name).read_bytes() for name in there)
    own: Any = AutoModelForMultimodalLM.from_pretrained(base if method == "lora" else folder, dtype=torch.float32)
    again = PeftModel.from_pretrained(own, str(folder)) if method == "lora" else own
    trained = heard(folder, done.model)
    torch.testing.assert_close(heard(folder, again), trained, rtol=1e-5, atol=1e-6)
    before: Any = AutoModelForMultimodalLM.from_pretrained(base, dtype=torch.float32)
    assert not torch.allclose(heard(base, before), trained, atol=1e-6)
    for name, value in before.model.audio_tower.named_parameters():
        assert again.get_parameter(f"{'base_model.model.' * (method == 'lora')}model.audio_tower.{name}").equal(value)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ("audio", "parts-need-images: only audios train its audio, and the data has none"),
        ("audio,projector", "parts-need-images: only audios train its audio and its projector, and the data has none"),
        ("language,vision", "parts-absent: the model has no vision"),
        ("vision", "nothing-trains: nothing of this model would be trained; its parts are audio, language, projector"),
    ],
)
def test_its_tower_is_the_part_audio(parts: str, told: str, base: Path) -> None:
    found = refusals(f"model.path={base}", "method=full", f"method.parts=[{parts}]")
    assert [f"{each.rule}: {each.wrong}" for each in found] == [told]
