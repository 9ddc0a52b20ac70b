"""Whole runs on rows with images: prepared, trained and measured as those of text are."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import films
import pytest
import seers
import torch
from transformers import AutoProcessor, AutoTokenizer

from factory.config.refusal import UserError
from factory.data import proof
from factory.data.batches import collate, order
from factory.data.dataset import TRAINED_AT
from factory.methods.lora.targets import PREFIX
from factory.rollouts.sample import Sampling, sample
from factory.stages.rm.run import scores

KINDS = ("llava", "idefics3", "qwen2_vl", "qwen2_5_vl", "paligemma", "gemma3")
SHORT = ("data=demo_images", "stage.max_steps=2", "precision=fp32", "stage.batch_size=2", "evaluate.samples=1")
PARTS = "method.parts=[language,vision,projector]"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")

    def base(kind: str) -> Path:
        return root / kind if (root / kind).is_dir() else seers.save(kind, root / kind)

    return base


def test_tokens_that_are_not_the_processors_are_red(
    base: Callable[[str], Path], execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = proof.ids_as_processor
    monkeypatch.setattr(proof, "ids_as_processor", lambda *args: [1, *real(*args)])
    done = execute(f"model.path={base('llava')}", *SHORT, "data.max_samples=6", "evaluate.perplexity=false")
    red = {name for name, check in done.run.checks.items() if not check["passed"]}
    assert red == {"media_as_processor"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_sees(kind: str, base: Callable[[str], Path], execute: Callable[..., Any]) -> None:
    """Every row is used, the checks hold, the language model learns, and a held-out question is answered."""
    more = ("data.max_samples=12",) if kind != "paligemma" else ()
    done = execute(f"model.path={base(kind)}", *SHORT, *more)
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert done.run.checks["media_as_processor"]["detail"].startswith("in 5 of 5 rows")
    data, evaluate = done.result["data"], done.result["evaluate"]
    assert data["dropped"] == {}
    assert data["used"] + data["validation"] + data["not_sampled"] == data["rows"] == 52
    assert done.dataset.first.media
    assert evaluate["perplexity"] != evaluate["perplexity_before"]
    assert len(done.result["samples"]) == 1


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_what_sees_learns_where_it_is_asked_to(
    kind: str, base: Callable[[str], Path], execute: Callable[..., Any]
) -> None:
    done = execute(f"model.path={base(kind)}", *SHORT, "data.max_samples=12", "method=full", PARTS)
    moved = {name for name, value in done.model.named_parameters() if not value.equal(done.start[name])}
    for part in (
        "language_model.layers.0",
        "visual.blocks.0" if kind == "qwen2_vl" else "vision_tower.encoder.layers.0",
    ):
        assert any(part in name for name in moved), part


@pytest.fixture(scope="module")
def rarely(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[str, ...]]:
    """The words for rows of which those of `seen` have an image."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("rarely")
    Image.new("RGB", (8, 8), (200, 0, 90)).save(folder / "red.png")

    def rarely(rows: int, *seen: int) -> tuple[str, ...]:
        said = list[dict[str, Any]]()
        for number in range(rows):
            turns = [f"{'<image>' * (number in seen)}Which is number {number}?", "Red."]
            roles = ("user", "assistant")
            messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
            said.append({"messages": messages, "images": ["red.png"] * (number in seen)})
        path = folder / f"{rows}.jsonl"
        path.write_text("\n".join(map(json.dumps, said)))
        given = ("data=file", f"data.path={path}", "data.validation_fraction=0", "precision=fp32")
        return *given, "stage.batch_size=1", "stage.logging_steps=1", "evaluate.perplexity=false"

    return rarely


def red(done: Any) -> dict[str, Any]:
    return {name: check for name, check in done.run.checks.items() if not check["passed"]}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_text_counts_where_it_reaches_nothing_that_trains(
    method: str, base: Callable[[str], Path], execute: Callable[..., Any], rarely: Callable[..., tuple[str, ...]]
) -> None:
    words = (f"model.path={base('llava')}", *rarely(6, 1, 3, 4), f"method={method}", "method.parts=[projector]")
    done = execute(*words)
    lines = [json.loads(line) for line in done.run.folder.metrics.read_text().splitlines()]
    assert [line["grad_norm"] == 0 for line in lines].count(True) == 3 and all(line["loss"] > 0 for line in lines)
    assert not red(done)


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_a_tower_whose_last_layers_no_feature_follows_from(
    method: str, base: Callable[[str], Path], execute: Callable[..., Any], rarely: Callable[..., tuple[str, ...]]
) -> None:
    done = execute(f"model.path={base('llava')}", *rarely(8, 1, 2, 3, 6), f"method={method}", PARTS)
    assert done.run.checks["gradients_alive"]["passed"] and not red(done)


def test_what_sees_is_judged_when_it_has_seen(
    base: Callable[[str], Path], execute: Callable[..., Any], rarely: Callable[..., tuple[str, ...]]
) -> None:
    """The first two updates, as this seed orders them, are of texts."""
    words = (f"model.path={base('qwen2_vl')}", *rarely(12, 2, 4, 10), "method=lora", PARTS)
    done = execute(*words)
    assert [done.dataset.train[number].media for number in order(12, done.run.plan.settings.seed, 0)[:2]] == [(), ()]
    assert done.run.checks["gradients_alive"]["passed"] and not red(done)


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_a_score_is_of_what_is_seen(
    kind: str, base: Callable[[str], Path], execute: Callable[..., Any], tmp_path: Path
) -> None:
    """Pairs with images train a reward model, and another image gives another score."""
    from PIL import Image

    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{name}.png")
    asked = {"prompt": "<image>Which colour?", "chosen": "It is red.", "rejected": "It is loud."}
    rows = [{**asked, "images": [f"{name}.png"]} for name in ("red", "blue") * 6]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    words = (*SHORT[1:4], "stage=rm", "method=lora", "data=file", f"data.path={tmp_path}/pairs.jsonl")
    done = execute(f"model.path={base(kind)}", *words, "data.validation_fraction=0")
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    pairs = [done.dataset.train[number] for number in range(12)]
    by_image = {pair.chosen.media: pair for pair in pairs}
    assert len(by_image) == 2
    batch = collate(list(by_image.values()), done.dataset.pad, "cpu", media=done.dataset.media)
    red, blue = batch["input_ids"][:2]
    assert red.equal(blue)
    found = scores(done.model, batch)
    assert abs(found[0] - found[1]) > 1e-4
    told = (done.run.folder.model / "README.md").read_text()
    assert 'base = AutoModelForImageTextToText.from_pretrained("THE_BASE")' in told


@pytest.mark.parametrize("kind", ["llava", "idefics3", "qwen2_vl", "gemma3"])
def test_what_is_answered_is_what_training_would_see(
    kind: str, base: Callable[[str], Path], execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompts' tokens and all that their images become; side by side they get the answers they get alone."""
    from transformers.generation.utils import GenerationMixin

    given = list[dict[str, Any]]()
    mixin: Any = GenerationMixin
    write = mixin.generate

    def watched(model: Any, **inputs: Any) -> Any:
        given.append(inputs)
        return write(model, **inputs)

    monkeypatch.setattr(mixin, "generate", watched)
    answered = ("evaluate.generation=true", "evaluate.max_new_tokens=6", "data.max_length=900")
    short = ("data.max_samples=20", "data.validation_fraction=0.15", "evaluate.perplexity=false", "evaluate.samples=0")
    done = execute(f"model.path={base(kind)}", *SHORT[:1], *SHORT[2:4], *short, *answered, "stage.max_steps=1")
    ((inputs,), dataset) = given, done.dataset
    seen, rows = inputs["attention_mask"].bool(), [dataset.validation[number] for number in range(3)]
    asked = {tuple(row.ids[: row.prompt]): row for row in rows}
    prompts = [tuple(ids[here].tolist()) for ids, here in zip(inputs["input_ids"], seen, strict=True)]
    assert len(asked) == 3, "prompts that are alike: seed others"
    assert set(prompts) == set(asked) and not seen.all()
    batch = collate([asked[prompt] for prompt in prompts], dataset.pad, "cpu", media=dataset.media)
    assert "pixel_values" in inputs
    for name in batch.keys() - {"input_ids", "labels", TRAINED_AT, "attention_mask"}:
        value, wanted = inputs[name], batch[name]
        if value.shape == seen.shape:  # of tokens
            value = value[seen]
            wanted = torch.cat([each[: len(prompt)] for each, prompt in zip(wanted, prompts, strict=True)])
        assert torch.equal(value, wanted), name
    told = (done.run.folder.evaluation / "generation.jsonl").read_text().splitlines()
    together = sorted(json.loads(line)["answer"] for line in told)
    assert together == sorted(_alone(done, asked[prompt]) for prompt in prompts)


def _alone(done: Any, row: Any) -> str:
    dataset = done.dataset
    found = sample(
        done.model,
        [row.ids[: row.prompt]],
        Sampling(6, greedy=True),
        pad=dataset.pad,
        stops=dataset.ends.tokens,
        device="cpu",
        beside=partial(dataset.media, [row.media]),
    )
    known: Any = AutoTokenizer.from_pretrained(done.run.folder.model)
    return known.decode(found[0].ids, skip_special_tokens=True).strip()


def test_streamed_rows_see_as_prepared_ones_do(base: Callable[[str], Path], execute: Callable[..., Any]) -> None:
    done = execute(f"model.path={base('llava')}", *SHORT, "data.streaming=true")
    assert len(done.losses) == 2
    assert done.dataset.media is not None


def test_a_stream_is_proven_on_what_its_rows_show(
    base: Callable[[str], Path], execute: Callable[..., Any], tmp_path: Path
) -> None:
    """Their paths start where the set is, wherever the run was started."""
    from PIL import Image

    (tmp_path / "set").mkdir()
    Image.new("RGB", (16, 12), (200, 0, 90)).save(tmp_path / "set" / "a.png")
    turns = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "Red."}]
    rows = [{"messages": turns, "images": ["a.png"]}] * 8
    (tmp_path / "set" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("data=file", f"data.path={tmp_path}/set/rows.jsonl", "data.streaming=true", *SHORT[1:])
    done = execute(f"model.path={base('llava')}", *words, "data.validation_fraction=0")
    assert done.run.checks["template"]["detail"].startswith("8 of 8 rows")


def test_a_missing_image_is_a_row_that_is_counted(
    base: Callable[[str], Path], execute: Callable[..., Any], tmp_path: Path
) -> None:
    from PIL import Image

    rows = []
    for number in range(12):
        name = f"{number}.png"
        Image.new("RGB", (16, 12), (20 * number, 0, 90)).save(tmp_path / name)
        turns = [
            {"role": "user", "content": f"<image>What is number {number}?"},
            {"role": "assistant", "content": "Red."},
        ]
        rows.append({"messages": turns, "images": [name]})
    (tmp_path / "3.png").unlink()
    (tmp_path / "4.png").write_bytes((tmp_path / "5.png").read_bytes()[:50])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = execute(f"model.path={base('llava')}", "data=file", f"data.path={tmp_path / 'rows.jsonl'}", *SHORT[1:])
    assert done.result["data"]["dropped"] == {"an image is missing": 1, "an image cannot be read": 1}
    assert done.result["data"]["rows"] == 12
    (tmp_path / "0.png").unlink()
    for name in ("1.png", "2.png", "5.png", "6.png", "7.png", "8.png", "9.png", "10.png", "11.png"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="an image is missing"):
        execute(
            f"model.path={base('llava')}", "data=file", f"data.path={tmp_path / 'rows.jsonl'}", *SHORT[1:], folder="b"
        )


def test_images_that_are_put_in_their_place_later_are_found(
    base: Callable[[str], Path], execute: Callable[..., Any], tmp_path: Path
) -> None:
    """What lacks most of its images is refused, and no such rows are kept."""
    from PIL import Image

    turns = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "Red."}]
    rows = [{"messages": turns, "images": [f"{number}.png"]} for number in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = (f"model.path={base('llava')}", "data=file", f"data.path={tmp_path / 'rows.jsonl'}", *SHORT[1:])
    with pytest.raises(UserError, match=r"media-unread.*of 8 of 8 rows"):
        execute(*asked, folder="a")
    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.new("RGB", (16, 12), (20 * number, 0, 90)).save(tmp_path / "images" / f"{number}.png")
    with pytest.raises(UserError, match="media-unread"):
        execute(*asked, folder="b")
    done = execute(*asked, f"data.sources.file.folder={tmp_path / 'images'}", folder="c")
    assert done.result["data"]["dropped"] == {}
    for number in range(8):
        (tmp_path / "images" / f"{number}.png").rename(tmp_path / f"{number}.png")
    assert execute(*asked, folder="d").result["data"]["dropped"] == {}


def test_the_saved_model_has_its_processor(base: Callable[[str], Path], execute: Callable[..., Any]) -> None:
    folder = execute(f"model.path={base('llava')}", *SHORT, "data.max_samples=8", "method=full").run.folder.model
    read: Any = AutoProcessor.from_pretrained(folder)
    assert read.tokenizer.chat_template == seers.FIRST
    assert (read.patch_size, read.image_processor.size["shortest_edge"]) == (2, seers.SIDE)


def test_an_adapter_stands_beside_what_sees(base: Callable[[str], Path], execute: Callable[..., Any]) -> None:
    done = execute(f"model.path={base('idefics3')}", *SHORT, "data.max_samples=12", "method.rank=2", PARTS)
    moved = {
        name.removeprefix(PREFIX)
        for name, value in done.model.named_parameters()
        if value.requires_grad and not value.equal(done.start[name])
    }
    assert any("vision_model" in name for name in moved)
    assert any("connector" in name for name in moved)


FILMED = ("data=file", "stage.max_steps=2", "stage.batch_size=2", "precision=fp32", "evaluate.samples=1")
FILMING = ("llava_onevision", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 rows on films of two lengths, one of a picture beside; one film is cut in half, and one is missing."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("filmed")
    for name in ("short", "long"):
        films.save(folder / f"{name}.mkv", films.frames(name))
    (folder / "half.mkv").write_bytes((folder / "short.mkv").read_bytes()[:300])
    Image.new("RGB", (16, 12), (200, 0, 90)).save(folder / "red.png")
    rows = []
    for number in range(14):
        name = {12: "half", 13: "none"}.get(number, ("short", "long")[number % 2])
        shown: dict[str, list[str]] = {"videos": [f"{name}.mkv"]}
        if number == 3:
            shown["images"] = ["red.png"]
        asked = f"{'<image>' * (number == 3)}<video>How long is number {number}?"
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"It is {name}."}]
        rows.append(json.dumps({"messages": said, **shown}))
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder


@pytest.mark.parametrize("kind", FILMING)
def test_a_run_sees_films(kind: str, base: Callable[[str], Path], execute: Callable[..., Any], filmed: Path) -> None:
    fixed = ("data.video_fps=null", "data.video_frames=4") if kind == "llava_onevision" else ()
    # of the tiny Qwen3-VL's tower some tensors lead nowhere
    whole = () if kind == "qwen3_vl" else ("method=full", PARTS)
    done = execute(f"model.path={base(kind)}", *FILMED, f"data.path={filmed}/rows.jsonl", *fixed, *whole)
    assert not {name: check for name, check in done.run.checks.items() if not check["passed"]}
    # of both in one conversation SmolVLM's processor keeps one, so that there is nothing to compare with
    assert done.run.checks["media_as_processor"]["detail"].startswith("in 5 of 5 rows with videos")
    assert done.result["data"]["dropped"] == {"a video cannot be read": 1, "a video is missing": 1}
    assert done.result["data"]["used"] + done.result["data"]["validation"] == 12
    moved = {name for name, value in done.model.named_parameters() if not value.equal(done.start[name])}
    assert any("vision" in name or "visual" in name for name in moved) == bool(whole)
    assert len(done.result["samples"]) == 1


def test_answers_to_a_film_are_compared_and_streamed(
    base: Callable[[str], Path], execute: Callable[..., Any], filmed: Path
) -> None:
    """Pairs see the same film on both sides; streamed rows are seen as prepared ones are."""
    asked = {"prompt": "<video>How long?", "chosen": "It is short.", "rejected": "It is loud.", "videos": ["short.mkv"]}
    (filmed / "pairs.jsonl").write_text("\n".join([json.dumps(asked)] * 8))
    words = (f"model.path={base('qwen2_vl')}", *FILMED, "data.validation_fraction=0", "evaluate.samples=0")
    done = execute(*words, "stage=dpo", f"data.path={filmed}/pairs.jsonl", folder="pairs")
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    pair = done.dataset.train[0]
    assert pair.chosen.media == pair.rejected.media and pair.chosen.media[0].kind == "video"
    batch = collate([pair], done.dataset.pad, "cpu", media=done.dataset.media)
    assert len(batch["video_grid_thw"]) == 2
    done = execute(*words, f"data.path={filmed}/rows.jsonl", "data.streaming=true", folder="streamed")
    assert len(done.losses) == 2


def test_how_a_film_is_seen_is_a_setting(
    base: Callable[[str], Path], execute: Callable[..., Any], filmed: Path
) -> None:
    """More frames a second are more tokens, up to the most; other settings are other rows in the cache."""
    (filmed / "one.jsonl").write_text("\n".join((filmed / "rows.jsonl").read_text().splitlines()[1::2][:4]))
    words = (f"model.path={base('qwen2_vl')}", *FILMED, f"data.path={filmed}/one.jsonl", "data.validation_fraction=0")
    frames = []
    for number, more in enumerate(((), ("data.video_fps=4",), ("data.video_fps=8", "data.video_frames=6"))):
        done = execute(*words, *more, "evaluate.samples=0", "stage.max_steps=1", folder=str(number))
        batch = collate([done.dataset.train[0]], done.dataset.pad, "cpu", media=done.dataset.media)
        frames.append(2 * int(batch["video_grid_thw"][0, 0]))
    assert frames == [6, 12, 6]  # of 24 frames at 8 a second
