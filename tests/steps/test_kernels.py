"""How a model computes is changed, what it computes is not."""

import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from families import KINDS, built_of

from factory.architecture import architecture

SHORT = (
    "stage.max_steps=3",
    "stage.logging_steps=1",
    "data.max_samples=16",
    "precision=fp32",
    "stage.learning_rate=1e-2",
    "compute.attention=sdpa",  # the tests call the model as transformers does
)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kept", ["true", "selective"])
def test_recomputed_activations_give_the_same_steps(method: str, kept: str, execute: Callable[..., Any]) -> None:
    plain = execute(f"method={method}", *SHORT, folder="plain")
    done = execute(f"method={method}", f"compute.activation_checkpointing={kept}", *SHORT, folder="recomputed")
    assert done.losses == pytest.approx(plain.losses, rel=1e-6)


def test_selective_keeps_the_matmuls(execute: Callable[..., Any]) -> None:
    """In the backward pass, `selective` multiplies no matrices again that the forward pass did."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def flops(kept: str) -> int:
        done = execute("method=full", f"compute.activation_checkpointing={kept}", *SHORT, folder=f"run-{kept}")
        tokens = torch.tensor([done.dataset.train[0].ids])
        with FlopCounterMode(display=False) as counted:
            done.model.train()(input_ids=tokens, labels=tokens).loss.backward()
        return counted.get_total_flops()

    assert flops("false") == flops("selective") < flops("true")


@pytest.mark.parametrize("kept", ["true", "selective"])
def test_of_the_first_layers_alone(kept: str, execute: Callable[..., Any]) -> None:
    """The steps are the same, and what is multiplied again lies between none and all."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    flops, losses = [], []
    for words in (["false"], [kept, "1"], [kept, "2"]):
        options = zip(("compute.activation_checkpointing", "compute.recomputed_layers"), words, strict=False)
        done = execute("method=full", *map("=".join, options), *SHORT, folder="-".join(words))
        tokens = torch.tensor([done.dataset.train[0].ids])
        with FlopCounterMode(display=False) as counted:
            done.model.train()(input_ids=tokens, labels=tokens).loss.backward()
        flops.append(counted.get_total_flops())
        losses.append(done.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6) and losses[2] == pytest.approx(losses[0], rel=1e-6)
    again = [each - flops[0] for each in flops]
    assert again == ([0, 0, 0] if kept == "selective" else [0, again[1], 2 * again[1]]) and again[2] >= again[1]


def test_code_that_knows_all_layers_or_none_is_refused(execute: Callable[..., Any]) -> None:
    import torch

    from factory.config.refusal import UserError
    from factory.steps.kernels import recompute

    options = ("compute.activation_checkpointing=true", "compute.recomputed_layers=1")
    done = execute("method=full", *options, *SHORT)
    done.model.model.layers[1] = torch.nn.Identity()
    with pytest.raises(UserError, match="says for all of its layers at once") as refused:
        recompute(done.model, done.run.plan, architecture(done.run.plan.steps.load.config))
    assert "compute.recomputed_layers=auto" in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "more", "kept"),
    [
        ("llama", {}, True),
        ("llama", {"attention_dropout": 0.1}, False),
        ("gpt2", {"attn_pdrop": 0.1}, False),
        ("gpt2", {"attn_pdrop": 0.0}, True),
        ("falcon", {"attention_dropout": 0.1, "hidden_dropout": 0.0}, False),
    ],
)
def test_selective_makes_attention_that_drops_out_again(kind: str, more: dict[str, Any], kept: bool) -> None:
    """A GPU's kernels draw what they drop out: kept, all that is drawn after them would be drawn anew."""
    from factory.steps import kernels

    known = kernels._dear(built_of({**KINDS[kind], **more}, "meta"))
    names = {each.overloadpacket.__name__ for each in known}
    assert {"mm", "addmm", "bmm"} <= names
    assert any("attention" in name for name in names) == kept


def test_a_proof_recomputes_as_training_does(execute: Callable[..., Any]) -> None:
    import torch

    from factory.steps.kernels import without_dropout

    done = execute("method=lora", "compute.activation_checkpointing=true", *SHORT)
    tokens, called = torch.tensor([done.dataset.train[0].ids]), list[int]()
    for name, module in done.model.named_modules():
        if name.endswith("mlp"):
            module.register_forward_pre_hook(lambda *_: called.append(1))  # made again, it may end before it is done

    def calls() -> int:
        called.clear()
        done.model(input_ids=tokens, labels=tokens).loss.backward()
        return len(called)

    trained, kept = done.model.train() and calls(), done.model.eval() and calls()
    without_dropout(done.model)
    assert calls() == trained == 2 * kept > 0


def test_a_proof_drops_nothing_out(execute: Callable[..., Any]) -> None:
    import torch

    from factory.steps.kernels import without_dropout

    done = execute("method=lora", "method.dropout=0.5", "compute.activation_checkpointing=true", *SHORT)
    tokens = torch.tensor([done.dataset.train[0].ids])
    without_dropout(done.model)
    torch.testing.assert_close(*(done.model(input_ids=tokens).logits for _ in range(2)), rtol=0, atol=0)


def test_layers_that_drop_out_by_themselves_are_kept_from_it(execute: Callable[..., Any]) -> None:
    from factory.steps.kernels import without_dropout

    model = execute("method=full", "compute.activation_checkpointing=true", *SHORT).model
    first, second = model.model.layers
    first.hidden_dropout, second.config = 0.1, SimpleNamespace(attention_dropout=0.1)
    without_dropout(model)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("proof", ["as in training", "by row"])
def test_a_row_of_8_bits_does_not_depend_on_what_is_beside_it(proof: str) -> None:
    import torch
    from bitsandbytes.nn.modules import Linear8bitLt

    from factory.steps.kernels import rounded_by_row, without_dropout

    layer = Linear8bitLt(64, 64, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.load_state_dict({"weight": torch.randn(64, 64, generator=torch.manual_seed(0))})
    model = torch.nn.Sequential(layer.to("cpu"))
    rows = torch.randn(4, 64, generator=torch.manual_seed(1))
    rows[3, 5] = 20.0  # an outlier, in the last row alone

    def apart() -> float:
        return float((model(rows)[:3] - model(rows[:3])).abs().max())

    model.eval()
    assert apart() > 1e-3
    if proof == "by row":
        with rounded_by_row(model):
            assert apart() == 0
        assert layer.state.threshold == 6.0
    else:
        without_dropout(model)
        assert apart() < 1e-4


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_layers_give_the_same_steps(execute: Callable[..., Any]) -> None:
    plain = execute("method=lora", "precision=fp32", *SHORT, folder="plain")
    done = execute("method=lora", "precision=fp32", "compute.compile=true", *SHORT, folder="compiled")
    assert done.losses == pytest.approx(plain.losses, rel=1e-4)
