"""What `precision=auto` takes on each kind of device, and that the plan says why."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import compiled, refusals

from factory.plan.facts import Gpu
from factory.plan.inspect import machine as look

HERE = look.look_at_machine().packages
H100, T4, MI300X = (
    Gpu(name=name, memory_bytes=2**36, compute_capability=capability)
    for name, capability in (("NVIDIA H100 80GB HBM3", 9.0), ("Tesla T4", 7.5), ("AMD gfx942", 9.4))
)
ROCM, NPU = {"packages": HERE | {"rocm": "7.1"}}, {"packages": HERE | {"torch-npu": "2.9.0"}}
FAST = {"gpus": (), "cpu_bf16": True}
# what the machine has, what is asked for, and the device and type of the frozen weights with words of the reason
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, str, str]]] = {
    "an NVIDIA card that has bfloat16": (
        {"gpus": (H100,)},
        (),
        ("cuda", "bfloat16", "bf16, as compute capability 9.0"),
    ),
    "one that has not": ({"gpus": (T4,)}, (), ("cuda", "float16", "fp16, as compute capability 7.5 has no")),
    "the first of two": ({"gpus": (T4, H100)}, (), ("cuda", "float16", "fp16, as compute capability 7.5 has no")),
    "one of two that has not": (
        {"gpus": (H100, T4)},
        ("hardware.num_processes=2", "hardware.strategy=ddp"),
        ("cuda", "float16", "fp16, as compute capability 7.5 has no"),
    ),
    "a card that nobody knows": (
        {"gpus": ()},
        ("hardware=single_gpu",),
        ("cuda", "bfloat16", "bf16, as compute capability 8.0 is assumed: no GPU is here"),
    ),
    "an AMD card": (
        {"gpus": (MI300X,), **ROCM},
        (),
        ("cuda", "float16", "fp16, as torch is built for ROCm: an AMD GPU"),
    ),
    "an NVIDIA card planned for beside it": (
        {"gpus": (MI300X,), **ROCM},
        ("hardware=a100_40gb",),
        ("cuda", "bfloat16", "bf16, as compute capability 8.0"),
    ),
    "the CPU beside it": (FAST | ROCM, ("hardware=cpu",), ("cpu", "bfloat16", "bf16, as this CPU multiplies")),
    "a CPU with bfloat16": (FAST, (), ("cpu", "bfloat16", "bf16, as this CPU multiplies bfloat16 natively (")),
    "a CPU without": (FAST | {"cpu_bf16": False}, (), ("cpu", "float32", "fp32, as this CPU has no bfloat16")),
    "an Ascend NPU": (
        FAST | NPU,
        (),
        ("cpu", "bfloat16", "; an Ascend NPU would take fp16, but runs are on a CPU or a"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_precision_is_the_devices(case: str, machine: Callable[..., None]) -> None:
    has, asked, (device, dtype, why) = CASES[case]
    machine(**has)
    plan = compiled("model=llama2_7b", "precision=auto", *asked, training=False)
    assert (plan.steps.load.device, plan.steps.load.dtype) == (device, dtype)
    (note,) = (note for note in plan.notes if note.startswith("precision=auto: "))
    assert why in note
    assert ("NPU" in note) == (case == "an Ascend NPU")


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        ("precision=bf16", True),
        ("precision=pure_bf16", True),
        ("precision=auto", False),
        ("precision=bf16 hardware=a100_40gb", False),
        ("precision=bf16 hardware=cpu", False),
    ],
)
def test_numbers_that_a_card_emulates_are_told(words: str, warned: bool, machine: Callable[..., None]) -> None:
    machine(gpus=(T4,))
    plan = compiled(*words.split(), training=False)
    emulated = "compute capability 7.5 has no bfloat16 and emulates it, slowly; it has float16"
    assert any(emulated in text for text in plan.warnings) == warned


def test_the_cpu_by_name_says_nothing_of_an_npu(machine: Callable[..., None]) -> None:
    machine(**FAST | NPU)
    assert not any("NPU" in note for note in compiled("model=llama2_7b", "hardware=cpu", training=False).notes)


def test_a_named_precision_is_taken_on_an_amd_card(machine: Callable[..., None]) -> None:
    machine(gpus=(MI300X,), **ROCM)
    plan = compiled("model=llama2_7b", "precision=bf16", training=False)
    assert plan.steps.load.dtype == "bfloat16"
    assert not any(note.startswith("precision=auto") for note in plan.notes)


@pytest.mark.parametrize(
    ("words", "reference"),
    [
        (("stage=sft",), None),
        (("stage=dpo",), "base"),
        (("stage=kto", "method=qlora"), "base"),
        (("stage=dpo", "method=full"), "weights"),
        (("stage=dpo", "method=freeze"), "weights"),
        (("stage=dpo", "stage.loss=cpo"), None),
        (("stage=orpo",), None),
    ],
)
def test_the_plan_names_its_reference(words: tuple[str, ...], reference: str | None) -> None:
    assert compiled(*words).steps.train.reference == reference


PER, SDPA = "compute.attention=per_document", "compute.attention=sdpa"


@pytest.mark.parametrize(
    ("words", "free"),
    [
        (("precision=bf16",), True),
        (("precision=fp32",), True),
        ((SDPA,), False),  # its kernel would meet all keys of all rows
        (("stage.batch_size=1",), False),
        (("stage=dpo", "stage.batch_size=1"), True),  # of two answers
        (("stage=rm",), True),
        (("stage=orpo", SDPA), False),
        (("stage=kto",), True),
        (("stage=grpo", "stage.reward=trl:think_format_reward"), True),
        (("data.packing=true",), True),
        (("data.packing=true", SDPA), False),
        (("data.packing=true", "data.isolate_documents=false"), False),
        (("stage=pt",), False),
        (("stage=pt", "data.packing=false"), True),
        (("model=gemma3_1b", "stage=dpo"), True),  # windows are within an answer
        (("model=gpt2_1.5b", "stage=dpo"), True),
        (("model=opt_125m",), False),  # positions do not isolate
        (("stage.neftune_alpha=5",), False),  # whose noise is by a row's length
        (("compute.compile=true", "precision=fp32"), False),
    ],
)
def test_nothing_is_padded_where_rows_are_isolated_by_their_lengths(words: tuple[str, ...], free: bool) -> None:
    own = not any(word.startswith("model=") for word in words)
    steps = compiled("hardware=cpu", "tracking=none", *words, training=own).steps
    assert steps.pack.padding_free == free
    if free:
        assert steps.patch.attention == "per_document"


H100 = "hardware=h100_80gb"


@pytest.mark.parametrize(
    ("words", "attention", "free"),
    [
        ((H100,), "varlen", True),
        ((H100, "stage.batch_size=1"), "varlen", True),
        *(((H100, f"stage={stage}"), "varlen", True) for stage in ("dpo", "orpo", "rm", "kto")),
        ((H100, "stage=ppo", "stage.reward=trl:think_format_reward"), "varlen", True),
        ((H100, "data.packing=true"), "varlen", True),
        ((H100, "data.packing=true", "compute.compile=true"), "varlen", True),
        ((H100, "stage=pt"), "sdpa", False),  # nothing is padded, nothing isolated
        ((H100, "stage=pt", "data.isolate_documents=true"), "varlen", True),
        ((H100, "precision=fp32", "data.packing=true"), "per_document", True),
        ((H100, "hardware.compute_capability=7.5"), "per_document", True),
        ((H100, "model=gemma2_2b"), "eager", False),
        ((H100, "model=gpt2_1.5b"), "per_document", True),  # drops out in attention
        ((H100, "model=opt_125m"), "sdpa", False),
        ((H100, "stage.neftune_alpha=5"), "sdpa", False),
        ((H100, "stage.neftune_alpha=5", "data.packing=true"), "varlen", False),
    ],
)
def test_attention_on_a_gpu_builds_no_mask(words: tuple[str, ...], attention: str, free: bool) -> None:
    plan = compiled("tracking=none", *words, training=False)
    assert (plan.steps.patch.attention, plan.steps.pack.padding_free) == (attention, free)
    (note,) = (note for note in plan.notes if note.startswith("compute.attention=auto: "))
    assert note.startswith(f"compute.attention=auto: {attention}, ")


@pytest.mark.parametrize(
    ("packages", "words", "attention"),
    [
        (("flash-attn",), (), "flash_attention_2"),
        (("flash-attn", "flash-attn-3"), (), "flash_attention_3"),
        (("flash-attn", "flash-attn-3"), ("hardware.compute_capability=8.6",), "flash_attention_2"),
        (("flash-attn", "flash-attn-3"), ("hardware.compute_capability=12.0",), "flash_attention_2"),
        (("flash-attn",), ("data.packing=true",), "flash_attention_2"),
        (("flash-attn",), ("stage=pt",), "flash_attention_2"),
        (("flash-attn",), ("model=gemma2_2b",), "flash_attention_2"),
        (("flash-attn",), ("precision=fp32",), "per_document"),
        (("flash-attn",), ("hardware.compute_capability=7.5",), "per_document"),
        (("flash-attn",), ("model=opt_125m",), "flash_attention_2"),
    ],
)
def test_flash_attention_where_it_is_installed(
    packages: tuple[str, ...], words: tuple[str, ...], attention: str, machine: Callable[..., None]
) -> None:
    machine(packages=HERE | dict.fromkeys(packages, "2.8"))
    plan = compiled("tracking=none", H100, *words, training=False)
    assert plan.steps.patch.attention == attention


def test_queries_that_are_scaled_by_their_place_in_a_row(here: Path) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model("llama4_text", floor_scale=96, max_position_embeddings=128).save_pretrained("scaled")
    base = ("model.path=scaled", "model.template=chatml", "hardware=cpu", "tracking=none", "data.packing=true")
    assert compiled(*base, "data.max_length=95", training=False).steps.pack.isolate_documents
    (found,) = refusals(*base, "data.max_length=96", training=False)
    assert found.rule == "isolation-unsupported" and "in rows of less than 96 tokens" in found.wrong


def test_what_is_said_again_is_told() -> None:
    plan = compiled(
        "method=lora", "method=dora", "seed=1", "++method.rank=4", "method.rank=2", "seed=1", training=False
    )
    assert plan.options["method"] == "dora" and plan.settings.method.rank == 2
    assert [note for note in plan.notes if "replaced" in note] == [
        "method=lora is replaced by method=dora, which stands after it",
        "++method.rank=4 is replaced by method.rank=2, which stands after it",
    ]


def test_columns_that_nothing_reads_are_named(tmp_path: Path) -> None:
    """An input or a system text under a misspelled name was left out of every row, and nobody was told."""

    def notes(**more: Any) -> list[str]:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"instruction": "Add", "output": "3", **more}))
        plan = compiled("data=file", f"data.path={path}", training=False)
        return [note for note in plan.notes if note.startswith("data.sources")]

    assert not notes(input="1 and 2", system="Be short.")
    assert notes(imput="1 and 2", id=7) == [
        "data.sources.file: format=alpaca reads no column 'id', 'imput'; "
        "if that is what is meant: data.sources.file.columns='{input: imput}'"
    ]
    assert notes(input="1", inputs="2") == ["data.sources.file: format=alpaca reads no column 'inputs'"]
    (many,) = notes(**{f"c{number}": 1 for number in range(20)})
    assert many.endswith("'c15' and 12 more")
    plan = compiled("data=gsm8k", training=False)  # whose columns are known when it is read
    assert not [note for note in plan.notes if note.startswith("data.sources")]


def test_columns_that_stand_behind_another_are_named(tmp_path: Path) -> None:
    """Of several that say what is asked a row's first is read, and an input where an instruction is."""

    def notes(*rows: dict[str, Any], stage: str = "grpo") -> list[str]:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        reward = ("stage.reward=own:score",) if stage == "grpo" else ()
        plan = compiled(f"stage={stage}", *reward, "data=file", f"data.path={path}", training=False)
        return [note for note in plan.notes if note.startswith("data.sources")]

    unread = "data.sources.file: format=prompts reads no column "
    asked = {"prompt": "Translate:", "input": "Hello"}
    assert notes(asked) == [f"{unread}'input'"]
    assert notes(asked | {"imput": "Ho"}) == [f"{unread}'imput', 'input'"]
    assert notes({"prompt": "a", "instruction": "b", "solution": "c"}) == [f"{unread}'instruction'"]
    assert not notes({"instruction": "a", "input": "b", "solution": "c"})
    assert not notes({"prompt": "a", "instruction": ""}, {"prompt": None, "instruction": "b", "input": "c"})
    judged = {"messages": [{"role": role, "content": "a"} for role in ("user", "assistant")], "label": True}
    assert notes(judged | {"instruction": "a", "output": "b"}, stage="kto") == [
        "data.sources.file: format=kto reads no column 'instruction', 'output'"
    ]


def test_an_image_without_a_mark_is_told(tmp_path: Path) -> None:
    """A set of questions, answers and pictures was trained without its pictures, and nobody was told."""
    path = tmp_path / "rows.jsonl"

    def notes(question: str, format: str) -> list[str]:
        path.write_text(json.dumps({"instruction": question, "output": "3", "image": "a.png"}))
        words = ("model=llava1.5_7b", "data=file", f"data.path={path}", f"data.sources.file.format={format}")
        plan = compiled(*words, training=False)
        return [note for note in plan.notes if note.startswith("data.sources")]

    assert notes("How many?", "auto") == [
        "data.sources.file: format=alpaca reads no column 'image'; "
        "if that is what is meant: data.sources.file.columns='{images: image}'"
    ]
    assert not notes("<image>How many?", "alpaca")


def test_a_part_in_which_no_adapter_would_stand_is_refused() -> None:
    """Gemma 3's projector is a matrix of its own, no linear layer: it stayed as it was, and nobody was told."""
    words = ("model=gemma3_4b", "model.gated=false", "data=demo_images", "method.parts=[language,projector]")
    assert [each.wrong for each in refusals(*words, training=False)] == [
        "no adapter would stand in its projector, which has no linear layer: leave it out of method.parts"
    ]
    assert not refusals(*words, "method=full", training=False)


def test_what_transformers_cannot_show_a_model_is_refused() -> None:
    """A run read 100 billion parameters, and ended at its first image."""
    (found,) = refusals("model=llama4_scout", "data=demo_images", training=False)
    assert found.rule == "media-not-taken" and "llama4" in found.wrong
    assert not refusals("model=llama4_scout", "data=demo", training=False)


@pytest.mark.parametrize(
    ("words", "chosen", "note"),
    [
        ("hardware=a100_40gb precision=fp32", "high", "use TF32"),
        ("hardware=a100_40gb precision=bf16", "high", "use TF32"),
        ("hardware=a100_40gb precision.float32_matmul=highest", "highest", None),
        ("hardware=cpu precision=fp32", "highest", "stay exact"),
        ("hardware=cpu precision=fp32 precision.float32_matmul=medium", "medium", None),
    ],
)
def test_products_of_float32_use_tf32_on_cuda(words: str, chosen: str, note: str | None) -> None:
    plan = compiled(*words.split(), training=False)
    assert plan.steps.load.float32_matmul == chosen
    said = [each for each in plan.notes if each.startswith("precision.float32_matmul=auto: ")]
    assert len(said) == (note is not None) and all(note in each for each in said if note)


def test_the_precision_of_products_is_part_of_the_digest() -> None:
    high, highest = (
        compiled("hardware=a100_40gb", f"precision.float32_matmul={name}", training=False)
        for name in ("high", "highest")
    )
    assert high.digest() != highest.digest()
