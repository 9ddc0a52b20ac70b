"""A model that hears is trained on sounds and on text, is saved with its processor, and hears as it is read anew."""

import copy
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sights
import tiny
import torch
from conftest import refusals
from test_seen import as_own, doubled, example, pack
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from factory.data import batches
from factory.data.encoding import EncodedRow, spec_of
from factory.data.media import Inputs, Processor, processor_spec
from factory.data.record import BadRow, Message, Record
from factory.losses import causal_lm
from factory.steps.load import PROCESSOR_FILES, read_processor

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
        ("vision", "nothing-trains: nothing of this model would be trained; its parts are audio, language, projector"),
    ],
)
def test_its_tower_is_the_part_audio(parts: str, told: str, base: Path) -> None:
    found = refusals(f"model.path={base}", "method=full", f"method.parts=[{parts}]")
    assert [f"{each.rule}: {each.wrong}" for each in found] == [told]


# as its processor's own writes a conversation
TALK = """{% set heard = namespace(count=0) %}{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\n' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'audio' %}{% set heard.count = heard.count + 1 %}\
{{ 'Audio ' ~ heard.count ~ ': <|audio_bos|><|AUDIO|><|audio_eos|>\n' }}{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
SECONDS = {"low": 0.3, "high": 0.8, "long": 1.5, "click": 0.01}


@pytest.fixture
def talking(base: Path) -> Path:
    known: Any = AutoTokenizer.from_pretrained(base)
    known.chat_template = TALK
    known.save_pretrained(base)
    return base


def tone(name: str) -> Any:
    return (np.sin(np.arange(int(RATE * SECONDS[name])) / (7 if name == "low" else 2)) * 16384).astype(np.int16)


def saved(folder: Path, name: str) -> str:
    with wave.open(str(folder / f"{name}.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(tone(name).tobytes())
    return str(folder / f"{name}.wav")


def rows(folder: Path) -> list[Record]:
    """One sound, two in two turns, and none."""
    low, high = (saved(folder, name) for name in ("low", "high"))
    asked = [
        (("<audio>What is it?", "A tone."), (low,)),
        (("<audio>And <audio>?", "A."), (low, high)),
        (("Hi", "Ho"), ()),
    ]
    asked.append((("<audio>\nOne?", "Yes.", "<audio> too?", "No."), (high, low)))
    return [
        Record(
            prompt=tuple(
                Message(role=("user", "assistant")[at % 2], content=text) for at, text in enumerate(turns[:-1])
            ),
            response=(Message(role="assistant", content=turns[-1]),),
            audios=places,
        )
        for turns, places in asked
    ]


def theirs(base: Path, one: Record) -> dict[str, Any]:
    """What the model's own processor gives of the conversation and the waves as they were made."""
    processor: Any = AutoProcessor.from_pretrained(base)
    given = [{**each, "content": parts(each["content"])} for each in (*one.prompt, *one.response)]
    text = AutoTokenizer.from_pretrained(base).apply_chat_template(given, tokenize=False)
    heard = [tone(Path(place).stem).astype(np.float32) / 32768 for place in one.audios]
    more = {"audio": heard, "sampling_rate": RATE} if heard else {}
    return dict(processor(text=[text], return_tensors="pt", **more))


def parts(content: str) -> list[dict[str, str]]:
    split = content.split("<audio>")
    made = [{"type": "text", "text": split[0]}]
    for text in split[1:]:
        made += [{"type": "audio"}, {"type": "text", "text": text}]
    return [part for part in made[:-1] if part.get("text") != ""] + made[-1:]


def encoded(base: Path, records: list[Record]) -> list[EncodedRow | BadRow]:
    known: Any = AutoTokenizer.from_pretrained(base)
    spec = spec_of(known, pack(), "messages", processor_spec(KIND, read_processor(str(base), None), known))
    return spec.encoder.encode(records)


def test_the_tokens_the_loss_and_its_gradients_are_the_models_own(talking: Path, tmp_path: Path) -> None:
    """Row by row, against the model's own forward of what its processor gives; then all rows in one batch."""
    model: Any = AutoModelForMultimodalLM.from_pretrained(talking, dtype=torch.float64).train()
    known: Any = AutoTokenizer.from_pretrained(talking)
    media = Inputs(lambda: Processor(read_processor(str(talking), None), KIND, known))
    records, total = rows(tmp_path), 0.0
    samples = [example(row) for row in encoded(talking, records)]
    ears = {name for name, _ in model.named_parameters() if "audio_tower.layers.0" in name}
    for one, sample in zip(records, samples, strict=True):
        inputs = theirs(talking, one)
        assert sample.ids == inputs["input_ids"][0].tolist()
        loss, alive = as_own(model, inputs, sample, media, 1e-8)
        assert ears & alive == (ears if one.audios else set())
        total += loss.item()
    together = causal_lm(model, doubled(batches.collate(samples, 0, "cpu", media=media)))
    assert together.item() == pytest.approx(total, rel=1e-10)


def test_a_run_hears_and_counts_what_it_cannot_hear(talking: Path, execute: Callable[..., Any], tmp_path: Path) -> None:
    """In a set's own folder: a sound that is longer than the model hears is a row's reason, as one that is missing."""
    lines = []
    for number in range(14):
        name = ("low", "high")[number % 2] if number < 11 else ("long", "click", "none")[number - 11]
        if name != "none":
            saved(tmp_path, name)
        said = [
            {"role": "user", "content": f"<audio>Is it {number}?"},
            {"role": "assistant", "content": f"It is {name}."},
        ]
        lines.append(json.dumps({"messages": said, "audios": [f"{name}.wav"]}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    words = (
        "data=file",
        f"data.path={tmp_path}/rows.jsonl",
        "stage.max_steps=2",
        "stage.batch_size=2",
        "precision=fp32",
    )
    everything = ("method=full", "method.parts=[language,audio,projector]", "evaluate.samples=1")
    done = execute(f"model.path={talking}", *words, *everything)
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert done.run.checks["media_as_processor"]["detail"].startswith("in 5 of 5 rows with audios")
    assert done.result["data"]["dropped"] == {
        "an audio is longer than the 1 seconds that the model hears": 1,
        "an audio is too short to be heard": 1,
        "an audio is missing": 1,
    }
    moved = {name for name, value in done.model.named_parameters() if not value.equal(done.start[name])}
    assert any("audio_tower.layers.0" in name for name in moved)
    assert len(done.result["samples"]) == 1
