"""Log-probabilities by chunks are the plain ones, and no more than a chunk's logits are ever there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import built_of, of, roomy
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from factory import chunks, losses
from factory.logits import TRANSFORMS, head_of
from factory.losses import LinearLogProbs, causal_lm, sequence_log_probs, token_log_probs

VOCABULARY, WIDTH = 13, 8
TRAINED = [(True, True, True), (True, False, False), (False, True, False), (False, False, True), (False, True, True)]


def problem(tokens: int, *, biased: bool = True, dtype: torch.dtype = torch.float64) -> tuple[Any, Any, Any, Any]:
    """hidden, weight, bias, target."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
    bias = torch.randn(VOCABULARY, dtype=dtype, requires_grad=True) if biased else None
    return hidden, weight, bias, torch.randint(0, VOCABULARY, (tokens,))


def plain(hidden: Any, weight: Any, bias: Any, target: Any, scale: float = 1.0, cap: float | None = None) -> Tensor:
    logits = scale * torch.nn.functional.linear(hidden, weight, bias)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    return torch.log_softmax(logits, dim=-1).gather(1, target[:, None])[:, 0]


def assert_same(mine: Any, theirs: Any, wanted: list[Any], rtol: float = 1e-12, atol: float = 1e-12) -> None:
    """The values, and the gradients of a sum that counts each of them differently."""
    torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)
    factors = torch.linspace(-1, 2, len(mine), dtype=mine.dtype)
    both = zip(
        torch.autograd.grad((mine * factors).sum(), wanted, allow_unused=True),
        torch.autograd.grad((theirs * factors).sum(), wanted, allow_unused=True),
        strict=True,
    )
    for left, right in both:
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(left, right, rtol=10 * rtol, atol=10 * atol)


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("cap", [None, 0.5, 30.0])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("trained", TRAINED)
def test_equals_torchs_log_softmax(
    scale: float, cap: float | None, biased: bool, trained: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bias, scale and cap, whichever of the tensors are trained, over one chunk, whole chunks and parts of one."""
    monkeypatch.setattr(chunks, "CHUNK", 8)
    for tokens in (1, 8, 20, 33):
        hidden, weight, bias, target = problem(tokens, biased=biased)
        given = [
            tensor.requires_grad_(wanted)
            for tensor, wanted in zip((hidden, weight, bias), trained, strict=True)
            if tensor is not None
        ]
        wanted = [tensor for tensor in given if tensor.requires_grad]
        mine = LinearLogProbs.apply(hidden, weight, target, torch.float64, bias, scale, cap)
        theirs = plain(hidden, weight, bias, target, scale, cap)
        assert mine.requires_grad == bool(wanted)
        if wanted:
            assert_same(mine, theirs, wanted)
        else:
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cap", [None, 1.5])
def test_gradients_are_the_slopes(cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 2)
    hidden, weight, bias, target = problem(5)

    def values(hidden: Any, weight: Any, bias: Any) -> Any:
        return LinearLogProbs.apply(hidden, weight, target, torch.float64, bias, 0.7, cap)

    assert torch.autograd.gradcheck(values, (hidden, weight, bias))


def test_slopes_of_slopes_are_refused() -> None:
    """They would be wrong: nothing is kept of how the slopes came about."""
    hidden, weight, bias, target = problem(5)
    values = LinearLogProbs.apply(hidden, weight, target, torch.float64, bias)
    (slopes,) = torch.autograd.grad(values.square().sum(), [hidden], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slopes.sum().backward()


def test_bfloat16_logits_keep_the_gradients_types() -> None:
    hidden, weight, bias, target = problem(20, dtype=torch.float32)
    values = LinearLogProbs.apply(hidden, weight, target, torch.bfloat16, bias, 2.0, 1.5)
    assert_same(values, plain(hidden, weight, bias, target, 2.0, 1.5), [hidden, weight, bias], rtol=0.02, atol=0.02)


def test_a_backward_pass_within_autocast_keeps_the_heads_type() -> None:
    hidden, weight, bias, target = problem(20, dtype=torch.float32)
    values = LinearLogProbs.apply(hidden, weight, target, torch.float32, bias)
    outside = torch.autograd.grad(values.sum(), [hidden, weight], retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        within = torch.autograd.grad(values.sum(), [hidden, weight])
    for left, right in zip(outside, within, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


class Largest(TorchDispatchMode):
    """The most elements that a tensor had which an operation gave, of one type where it is told."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype, self.elements = dtype, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        for value in given if isinstance(given, tuple | list) else (given,):
            if isinstance(value, Tensor) and self.dtype in (None, value.dtype):
                self.elements = max(self.elements, value.numel())
        return given


def largest(values: Callable[[], Tensor], dtype: torch.dtype | None = None) -> int:
    """Over the forward and the backward pass."""
    with Largest(dtype) as seen:
        values().sum().backward()
    return seen.elements


def wide_problem(tokens: int, vocabulary: int) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, requires_grad=True)
    return hidden, torch.randn(vocabulary, WIDTH), torch.randint(0, vocabulary, (tokens,))


@pytest.mark.parametrize(("trains_head", "rows"), [(False, 64), (True, 128)])
def test_a_chunks_logits_are_the_largest_tensor(trains_head: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 64)
    hidden, weight, target = wide_problem(640, 512)
    weight.requires_grad_(trains_head)
    assert largest(lambda: plain(hidden, weight, None, target)) == 640 * 512
    mine = largest(lambda: LinearLogProbs.apply(hidden, weight, target, torch.float32, None, 0.5, 30.0))
    assert mine == rows * 512


def kept(values: Callable[[], Tensor], dtype: torch.dtype | None = None) -> int:
    """How many elements autograd holds for the backward pass, in tensors of their own, of one type where it is told."""
    held: dict[int, int] = {}

    def hold(tensor: Tensor) -> Tensor:
        if dtype in (None, tensor.dtype):
            held[tensor.data_ptr()] = tensor.numel()
        return tensor

    with saved_tensors_hooks(hold, lambda tensor: tensor):
        given = values()
    assert given.requires_grad
    return sum(held.values())


def test_little_is_kept_for_the_backward_pass() -> None:
    """Its arguments, or what goes back if each token's gradient is 1."""
    hidden, weight, target = wide_problem(640, 512)
    assert kept(lambda: plain(hidden, weight, None, target)) > 640 * 512
    assert kept(lambda: LinearLogProbs.apply(hidden, weight, target, torch.float32)) == hidden.numel()
    weight.requires_grad_(True)
    arguments = hidden.numel() + weight.numel() + target.numel()
    assert kept(lambda: LinearLogProbs.apply(hidden, weight, target, torch.float32)) == arguments


class Products(TorchDispatchMode):
    """How many products gave so many columns."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns, self.count = columns, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        self.count += func.name().startswith("aten::mm") and given.shape[-1] == self.columns
        return given


@pytest.mark.parametrize(("trains_head", "times"), [(False, 1), (True, 2)])
def test_a_frozen_heads_logits_are_made_once(trains_head: bool, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "chunk", lambda *, head_trains: 64)
    hidden, weight, target = wide_problem(640, 512)
    weight.requires_grad_(trains_head)
    with Products(512) as seen:
        LinearLogProbs.apply(hidden, weight, target, torch.float32).sum().backward()
    assert seen.count == times * 10


def test_a_frozen_head_goes_back_as_often_as_it_is_asked() -> None:
    hidden, weight, target = wide_problem(40, 512)
    values = LinearLogProbs.apply(hidden, weight, target, torch.float32)
    first, second = (torch.autograd.grad((values * times).sum(), [hidden], retain_graph=True)[0] for times in (1, 2))
    torch.testing.assert_close(2 * first, second)


def test_a_frozen_heads_slopes_are_rounded_no_worse() -> None:
    """Of tokens whose gradients differ by orders of magnitude, beside those of float64."""
    dtype = torch.bfloat16
    hidden, weight, target = wide_problem(64, 512)
    hidden, weight = (value.detach().to(dtype) for value in (hidden, 0.1 * weight))
    factors = torch.logspace(-3, 0, 64)
    apart = []
    for trains in (False, True):
        entry, head = hidden.clone().requires_grad_(True), weight.clone().requires_grad_(trains)
        (LinearLogProbs.apply(entry, head, target, dtype) * factors).sum().backward()
        exact = hidden.double().requires_grad_(True)
        (plain(exact, weight.double(), None, target) * factors).sum().backward()
        assert entry.grad is not None and exact.grad is not None and entry.grad.dtype == dtype
        apart.append(((entry.grad - exact.grad).norm(dim=-1) / exact.grad.norm(dim=-1)).max().item())
    assert apart[0] < 1.2 * apart[1] < 0.02


def given_batch(length: int = 16) -> dict[str, Tensor]:
    """Three rows; a gap in the second, and nothing trained in the last."""
    ids = torch.randint(3, 90, (3, length), generator=torch.Generator().manual_seed(3))
    labels = ids.clone()
    labels[:, :4] = -100
    labels[1, 6:9] = -100
    labels[2] = -100
    return {"input_ids": ids, "labels": labels}


def own(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Of the model's own logits, token by token."""
    logits = model(input_ids=batch["input_ids"]).logits.to(torch.promote_types(model.dtype, torch.float32))
    each = torch.log_softmax(logits[:, :-1], dim=-1)
    labels = batch["labels"][:, 1:]
    return torch.stack(
        [
            each[row, place, label]
            for row, line in enumerate(labels)
            for place, label in enumerate(line)
            if label != -100
        ]
    )


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


# a plain head, capped, multiplied, divided, with a bias, tied; and kinds whose heads are not known
KINDS = ["llama", "gemma2", "cohere", "granite", "phi", "gpt2", "qwen3", "opt", "dbrx"]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_models_own_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, in chunks of a few tokens, with the gradients of all parameters."""
    monkeypatch.setattr(chunks, "CHUNK", 8)
    torch.manual_seed(0)
    model, batch = built_of(roomy(of(kind)), "cpu").double().eval(), given_batch()
    assert (head_of(model) is None) == (kind == "dbrx")
    values, rows = token_log_probs(model, batch)
    assert rows.tolist() == [0] * 12 + [1] * 9
    assert_same(values, own(model, batch), list(model.parameters()))


def adapted(model: Any, *targets: str) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=4, target_modules=list(targets), init_lora_weights=False))


@pytest.mark.parametrize(("target", "known"), [("q_proj", True), ("lm_head", False)])
def test_reads_through_peft(model: Any, target: str, known: bool) -> None:
    wrapped = adapted(model.double(), target)
    assert (head_of(wrapped) is not None) == known
    trained = [value for value in wrapped.parameters() if value.requires_grad]
    assert_same(token_log_probs(wrapped, given_batch())[0], own(wrapped, given_batch()), trained)


def test_without_its_adapter_it_is_the_base(model: Any) -> None:
    base, _ = token_log_probs(model, given_batch())
    wrapped = adapted(model, "q_proj")
    assert not torch.equal(token_log_probs(wrapped, given_batch())[0], base)
    with wrapped.disable_adapter():
        torch.testing.assert_close(token_log_probs(wrapped, given_batch())[0], base, rtol=0, atol=0)


def test_an_unknown_heads_logits_are_widened_by_chunks(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole they are there only as the model makes them, in the forward and in the backward pass."""
    monkeypatch.delitem(TRANSFORMS, "llama")
    monkeypatch.setattr(chunks, "CHUNK", 32)
    ids = torch.randint(3, 512, (4, 64))
    batch, vocabulary = {"input_ids": ids, "labels": ids}, model.config.vocab_size
    narrow = model.to(torch.bfloat16)
    assert largest(lambda: own(narrow, batch), torch.float32) == 4 * 64 * vocabulary
    assert largest(lambda: token_log_probs(narrow, batch)[0], torch.float32) == 32 * vocabulary
    whole = kept(lambda: own(narrow, batch), torch.float32)
    assert whole - kept(lambda: token_log_probs(narrow, batch)[0], torch.float32) >= 4 * 63 * vocabulary
    torch.testing.assert_close(token_log_probs(narrow, batch)[0], own(narrow, batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("known", [True, False])
def test_sums_of_rows(model: Any, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not known:
        monkeypatch.delitem(TRANSFORMS, "llama")
    batch = given_batch()
    values = own(model, batch)
    sums, counts = sequence_log_probs(model, batch)
    torch.testing.assert_close(sums, torch.stack([values[:12].sum(), values[12:].sum(), values.new_zeros(())]))
    assert counts.tolist() == [12, 9, 0]
    torch.testing.assert_close(-sums.sum(), causal_lm(model, batch), rtol=1e-6, atol=1e-5)


def test_gradients_are_those_of_the_loss(model: Any) -> None:
    parameters = list(model.parameters())
    sums, _ = sequence_log_probs(model, given_batch())
    mine = torch.autograd.grad(-sums.sum(), parameters)
    for left, right in zip(mine, torch.autograd.grad(causal_lm(model, given_batch()), parameters), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("known", [True, False])
def test_a_batch_without_a_trained_token(model: Any, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not known:
        monkeypatch.delitem(TRANSFORMS, "llama")
    ids = given_batch()["input_ids"]
    sums, counts = sequence_log_probs(model, {"input_ids": ids, "labels": torch.full_like(ids, -100)})
    assert sums.tolist() == [0, 0, 0] and counts.tolist() == [0, 0, 0]
    sums.sum().backward()
    grads = [value.grad for value in model.parameters() if value.grad is not None]
    assert grads and not any(grad.any() for grad in grads)


def test_weights_have_no_part_in_a_probability(model: Any) -> None:
    batch = given_batch()
    weighted = {**batch, "weights": torch.full(batch["labels"].shape, 0.25)}
    assert torch.equal(token_log_probs(model, weighted)[0], token_log_probs(model, batch)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_as_in_the_loss(model: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both take the head in autocast's type, so both round alike."""
    product, seen = losses._Room.product, []
    monkeypatch.setattr(losses._Room, "product", lambda room, part: (seen.append(part.dtype), product(room, part))[1])
    exact, _ = token_log_probs(model, given_batch())
    assert set(seen) == {torch.float32}
    seen.clear()
    with torch.autocast("cpu", dtype):
        values, _ = token_log_probs(model, given_batch())
        loss = causal_lm(model, given_batch())
    assert set(seen) == {dtype}
    assert values.dtype == torch.float32
    torch.testing.assert_close(-values.sum(), loss, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(values, exact, rtol=1e-2, atol=1e-2)
    values.sum().backward()
    assert set(seen) == {dtype}


def test_without_gradients_nothing_is_made_for_them(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slopes are made in the backward pass alone."""
    add, calls = losses._Gradients.add, []
    monkeypatch.setattr(losses._Gradients, "add", lambda *args: (calls.append(1), add(*args))[1])
    with torch.no_grad():
        values, _ = token_log_probs(model, given_batch())
    assert not values.requires_grad and not calls
    values, _ = token_log_probs(model, given_batch())
    assert not calls
    values.sum().backward()
    assert calls
