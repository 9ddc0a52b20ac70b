"""Each rule about quantized bases fires, alone, where it should; its nearest legal neighbours pass them all."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from factory.config import compose, groups
from factory.config.refusal import Refusal
from factory.config.settings import Quantization
from factory.plan import packages
from factory.plan.anew import settings_of
from factory.plan.choices import precision
from factory.plan.facts import Gpu
from factory.plan.inspect import look
from factory.plan.plan import Dtype
from factory.plan.rule import Case, rules_in
from factory.quantizers import spec
from factory.quantizers.spec import PACKAGES, QUANTIZERS, notes, reading, stays_quantized, weight_bytes

H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30, compute_capability=9.0)
FOUR, EIGHT = "method.quantization.bits=4", "method.quantization.bits=8"
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}
AQLM = {"quant_method": "aqlm", "nbits_per_codebook": 16, "num_codebooks": 1, "in_group_size": 8, "out_group_size": 1}
INT8 = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}
INT4 = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@dataclass(frozen=True)
class On:
    """A command line, on a checkpoint that says `said`, on a CPU or a GPU, without some packages."""

    line: str = ""
    said: dict[str, Any] | None = None
    gpu: bool = False
    without: tuple[str, ...] = ()
    model: str = "llama"


def quantizer(name: str) -> str:
    return f"method.quantization.method={name}"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("models")
    odd = {"hidden_size": 24, "intermediate_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3}
    return {
        "llama": tiny.save(at / "llama"),
        "gpt2": tiny.save(at / "gpt2", model_type="gpt2"),
        "odd": tiny.save(at / "odd", **odd),
    }


def case_of(on: On, folders: dict[str, Path]) -> Case:
    from factory.plan.compiler import _case

    line = ("hardware=single_gpu" if on.gpu else "hardware=cpu", f"model.path={folders[on.model]}", *on.line.split())
    composed = compose.compose(compose.parse(list(line)))
    chosen = settings_of(composed)
    facts = look(chosen, training=False)
    assert facts.model is not None
    machine = replace(
        facts.machine,
        gpus=(H100,) if on.gpu else (),
        packages={name: "1" for name in PACKAGES if name not in on.without},
    )
    model = replace(facts.model, config=facts.model.config | ({"quantization_config": on.said} if on.said else {}))
    case, refused = _case(chosen, replace(facts, machine=machine, model=model))
    assert not refused
    return case


def refused(on: On, folders: dict[str, Path]) -> list[Refusal]:
    case = case_of(on, folders)
    rules = [*rules_in(spec), *rules_in(packages)]
    return [found for rule in rules if rule.applies(case) for found in rule.refusals(case)]


def test_auto_takes_what_a_checkpoint_computes_in(folders: dict[str, Path], here: Path) -> None:
    name, why = precision(case_of(On("", AWQ, True), folders))
    assert name == "fp16" and "AWQ" in why
    assert precision(case_of(On("", GPTQ, True), folders))[0] == "bf16"


def test_of_an_unknown_quantizer_no_number_is_missed(folders: dict[str, Path], here: Path) -> None:
    found = refused(On(FOUR, {"quant_method": "higgs"}), folders)
    assert [each.rule for each in found] == ["quantized-weights", "checkpoint-quantizer", "package-missing"]


def test_a_missing_package_is_named_with_its_extra(folders: dict[str, Path], here: Path) -> None:
    """And each extra is in pyproject.toml, with a floor on every requirement."""
    import tomllib

    for name, made in QUANTIZERS.items():
        if made.bits and made.extra:
            found = next(
                each
                for each in refused(On(f"{EIGHT} {quantizer(name)}", without=made.packages), folders)
                if each.rule == "package-missing"
            )
            assert f"pip install -e '{groups.CONF.parent}[{made.extra}]'" in found.fix
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for made in QUANTIZERS.values():
        required = extras[made.extra] if made.extra else project["dependencies"]
        named = {text.partition(">=")[0].partition("[")[0]: text for text in required}
        for package in made.packages:
            assert ">=" in named[package], package


def test_what_is_kept_and_what_is_made_whole() -> None:
    none = Quantization(method="bitsandbytes", bits=None, type="nf4", double_quantization=True)
    four = none.model_copy(update={"bits": 4})
    for said, kept in ((BNB, True), (GPTQ, True), (AQLM, True), (FP8, False), ({"quant_method": "mxfp4"}, False)):
        assert stays_quantized(none, {"quantization_config": said}) is kept, said
    assert stays_quantized(four, {}) and not stays_quantized(none, {})
    assert reading({}, "cpu") is None and reading({"quantization_config": BNB}, "cpu") is None
    assert reading({"quantization_config": FP8}, "cuda") == {"dequantize": True}
    # a kernel that trains: the others lose gradients, or have none
    assert reading({"quantization_config": GPTQ}, "cpu") == {"backend": "torch"}
    assert reading({"quantization_config": AWQ}, "cuda") == {"backend": "auto_trainable"}
    sizes: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}
    for dtype, size in sizes.items():
        assert weight_bytes(none, {"quantization_config": FP8}, (64, 32), dtype) == 64 * 32 * size


def test_seven_billion_weights_take_the_papers_half_byte() -> None:
    """QLoRA, section 3: constants cost 0.5 bit a weight, 0.127 where they are quantized too."""
    four = Quantization(method="bitsandbytes", bits=4, type="nf4", double_quantization=True)
    shape = (4096, 11008)
    for double, bits in ((True, 4.127), (False, 4.5)):
        measured = weight_bytes(four.model_copy(update={"double_quantization": double}), {}, shape, "bfloat16")
        assert 8 * measured / (shape[0] * shape[1]) == pytest.approx(bits, abs=1e-3)


def test_the_plan_says_what_stays_whole(tmp_path: Path, here: Path) -> None:
    moe = tiny.save(tmp_path / "moe", model_type="mixtral", num_local_experts=4, num_experts_per_tok=2)
    four = Quantization(method="bitsandbytes", bits=4, type="nf4", double_quantization=True)
    arch = case_of(On(model="moe"), {"moe": moe}).arch
    (said,) = notes(four, {}, arch, "bfloat16")
    assert "experts" in said and "bfloat16" in said
    assert notes(four.model_copy(update={"bits": None}), {}, arch, "bfloat16") == ()
    (said,) = notes(four.model_copy(update={"bits": None}), {"quantization_config": FP8}, arch, "float16")
    assert "fp8" in said and "float16" in said
