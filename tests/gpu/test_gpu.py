"""On a GPU: every option trains in mixed precision, and so does what needs a GPU: paged states, flash, Liger."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from reads import Reads
from test_methods import FITTING

from factory.optimizers.spec import NEEDS_GPU, PAGED_FROM
from factory.plan.inspect.machine import installed_version
from factory.rounding import rounded
from factory.steps import train
from factory.steps.engine import Engine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
SHORT = (
    "hardware=single_gpu",
    "stage.warmup_ratio=0",
    "stage.logging_steps=1",
    "stage.save_steps=null",
)
LEARNS = (*SHORT, "stage.max_steps=20", "stage.learning_rate=1e-2")
# few numbers, or small ones: they need a larger rate to be seen above 16 bits' rounding
SLOW: dict[str, tuple[str, ...]] = dict.fromkeys(("ia3", "oft", "vera"), ("stage.learning_rate=0.1",))
FLASH = {"flash_attention_2": ("flash-attn", 8), "flash_attention_3": ("flash-attn-3", 9)}  # the card's generation


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its embedding has more than 100,000 numbers, below which bitsandbytes pages no state; heads are 64 wide."""
    return tiny.save(tmp_path_factory.mktemp("wider") / "llama", hidden_size=256)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", FITTING)
def test_every_option_learns(method: str, precision: str, execute: Callable[..., Any]) -> None:
    options = (*LEARNS, *FITTING[method], *SLOW.get(method, ()))
    done = execute(f"method={method}", *options, f"precision={precision}")
    assert {value.device.type for value in done.model.parameters()} == {"cuda"}
    assert {value.dtype for value in done.model.parameters() if value.requires_grad} == {torch.float32}
    for name, value in done.model.named_parameters():
        assert value.requires_grad or value.equal(done.start[name]), name
    assert done.result["evaluate"]["perplexity"] < done.result["evaluate"]["perplexity_before"]
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert done.run.memory_by_step["train"] > 0


@pytest.mark.parametrize("method", ["apollo", "badam", "full", "galore", "lora"])
def test_everything_in_bfloat16(method: str, execute: Callable[..., Any]) -> None:
    done = execute(f"method={method}", *LEARNS, *FITTING[method], "precision=pure_bf16")
    assert {value.dtype for value in done.model.parameters()} == {torch.bfloat16}
    assert done.result["evaluate"]["perplexity"] < done.result["evaluate"]["perplexity_before"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_rounded_as_on_the_cpu(dtype: torch.dtype) -> None:
    value = torch.randn(3, 2**21 + 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(value.cuda(), dtype).cpu(), rounded(value, dtype))


@pytest.mark.parametrize("optimizer", sorted(NEEDS_GPU))
def test_paged_states_step_as_others_and_go_on(
    optimizer: str, execute: Callable[..., Any], wider: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped, finish = list[Any](), Engine.finish
    monkeypatch.setattr(Engine, "finish", lambda engine: stepped.append(engine.optimizer) or finish(engine))
    options = ("method=full", *SHORT, f"model.path={wider}", "stage.max_steps=6", "stage.learning_rate=1e-3")
    options = (*options, "precision=fp32", "stage.save_total_limit=3")
    plain = execute(*options, f"stage.optimizer={optimizer.removeprefix('paged_')}", folder="plain")
    paged = execute(*options, f"stage.optimizer={optimizer}", "stage.save_steps=3", folder="paged")
    assert paged.losses == pytest.approx(plain.losses, rel=1e-4)
    assert paged.losses[-1] < paged.losses[0]
    middle = paged.run.folder.checkpoints / "step-000003"
    resumed = execute(*options, f"stage.optimizer={optimizer}", "stage.save_steps=3", resume_from=middle)
    assert resumed.losses == pytest.approx(paged.losses[3:], rel=1e-4)
    assert [_paged(each) for each in stepped[1:]] == [{False, True}] * 2  # as it was begun, and resumed


def _paged(optimizer: Any) -> set[bool]:
    """Whether states are paged, each where its tensor is large enough."""
    found = set[bool]()
    for parameter, state in optimizer.state.items():
        there = {getattr(state[name], "is_paged", False) for name in ("state1", "state2") if name in state}
        assert there == {parameter.numel() >= PAGED_FROM}
        found |= there
    return found


@pytest.mark.parametrize("options", [(), ("data.packing=true",), ("stage=dpo",)], ids=["rows", "packed", "dpo"])
def test_no_step_waits_for_the_gpu(
    options: tuple[str, ...], execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the third on: until then it is watched whether every tensor lives."""
    ask, asked = train._asked, list[Reads]()

    def asking(*given: Any) -> Any:
        asked.append(Reads())
        torch.cuda.set_sync_debug_mode("error")
        try:
            with asked[-1]:
                return ask(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(train, "_asked", asking)
    execute("method=lora", *SHORT, "stage.max_steps=6", "precision=bf16", *options)
    assert [step.seen for step in asked] == [[]] * 4


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("attention", FLASH)
def test_flash_attention_is_attention(attention: str, packed: bool, execute: Callable[..., Any], wider: Path) -> None:
    package, generation = FLASH[attention]
    if installed_version(package) is None or torch.cuda.get_device_capability()[0] < generation:
        pytest.skip(f"{package} is not installed, or not for this card")
    options = ("method=lora", *LEARNS, f"model.path={wider}", "precision=bf16", f"data.packing={str(packed).lower()}")
    plain = execute(*options, "compute.attention=sdpa", folder="plain")
    done = execute(*options, f"compute.attention={attention}", folder="done")
    assert done.model.config._attn_implementation == attention
    assert done.losses == pytest.approx(plain.losses, rel=0.01)


@pytest.mark.parametrize("attention", ["varlen", "per_document"])
@pytest.mark.parametrize(
    "options",
    [("data.packing=true",), ("stage.batch_size=4",), *((f"stage={name}",) for name in ("dpo", "kto", "rm", "orpo"))],
    ids=" ".join,
)
def test_joined_rows_train_as_padded_ones(
    attention: str, options: tuple[str, ...], execute: Callable[..., Any], wider: Path
) -> None:
    """Packed documents stay isolated, and losses are those of padded rows by torch's own kernel."""
    if attention == "varlen" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("torch's variable-length kernel is for compute capability 8.0 and above")
    options = ("method=lora", *LEARNS, f"model.path={wider}", "precision=bf16", *options)
    plain = execute(*options, "compute.attention=sdpa", folder="plain")
    done = execute(*options, f"compute.attention={attention}", folder="done")
    assert done.run.plan.steps.pack.padding_free and not plain.run.plan.steps.pack.padding_free
    assert done.run.checks["packing_isolation"]["passed"]
    assert done.losses == pytest.approx(plain.losses, rel=0.02)
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks


def test_attention_within_sequences_is_that_of_float32() -> None:
    """torch's variable-length kernel in bfloat16, with gradients and a window, against one call for each sequence."""
    from types import SimpleNamespace

    from factory.attention import segments

    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("torch's variable-length kernel is for compute capability 8.0 and above")
    sizes = (130, 1, 61)
    layer: Any = SimpleNamespace(is_causal=True, num_key_value_groups=2)
    bounds = torch.tensor([0, *sizes]).cumsum(0).int().cuda()
    wide = [torch.randn(1, heads, sum(sizes), 64, device="cuda") for heads in (4, 2, 2)]
    found = list[list[torch.Tensor]]()
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value = states = [each.to(dtype).requires_grad_() for each in wide]
        if dtype == torch.float32:
            made, _ = segments.per_document(layer, query, key, value, None, sequence_lengths=sizes, sliding_window=40)
        else:
            named: dict[str, Any] = {"cu_seq_lens_q": bounds, "max_length_q": max(sizes), "sliding_window": 40}
            made, _ = segments.varlen(layer, query, key, value, None, **named)
        found.append([made, *torch.autograd.grad(made.float().square().sum(), states)])
    for exact, narrow in zip(*found, strict=True):
        assert (narrow.float() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.skipif(installed_version("liger-kernel") is None, reason="liger-kernel is not installed")
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_liger_kernels_compute_the_same(method: str, execute: Callable[..., Any], wider: Path) -> None:
    options = (f"method={method}", *LEARNS, *FITTING[method], f"model.path={wider}", "precision=bf16")
    plain = execute(*options, folder="plain")
    done = execute(*options, "compute.kernels=liger", folder="done")
    assert done.losses == pytest.approx(plain.losses, rel=0.01)
    norms = [module for name, module in done.model.named_modules() if name.endswith("norm")]
    assert {module.forward.__module__.partition(".")[0] for module in norms} == {"liger_kernel"}
    assert done.result["evaluate"]["perplexity"] == pytest.approx(plain.result["evaluate"]["perplexity"], rel=0.01)


@pytest.mark.parametrize("loss_scale", [1.0, 2.0**16])
def test_a_float16_head_has_the_gradients_of_float64(loss_scale: float) -> None:
    from torch.nn import functional

    from factory.losses import LinearCrossEntropy

    torch.manual_seed(0)
    hidden = torch.randn(96, 64, device="cuda").half().requires_grad_()
    weight = (0.1 * torch.randn(4096, 64, device="cuda")).half().float().requires_grad_()
    target = torch.randint(0, 4096, (96,), device="cuda")
    wide = [each.detach().double().requires_grad_() for each in (hidden, weight)]
    exact = functional.cross_entropy(wide[0] @ wide[1].T, target, reduction="sum")
    units = loss_scale / 2**12
    loss = LinearCrossEntropy.apply(hidden, weight, target, torch.float16)
    found = torch.autograd.grad(loss * units, [hidden, weight])
    for mine, theirs in zip(found, torch.autograd.grad(exact, wide), strict=True):
        assert (mine.double() / units - theirs).abs().amax() < 4e-3 * theirs.abs().amax()


@pytest.mark.parametrize(("words", "tf32"), [("", True), ("precision.float32_matmul=highest", False)])
def test_float32_products_use_tf32_unless_forbidden(words: str, tf32: bool, execute: Callable[..., Any]) -> None:
    execute(*SHORT, "method=lora", "stage.max_steps=1", "precision=fp32", *words.split())
    assert torch.backends.cuda.matmul.allow_tf32 == tf32
