"""A second opinion on a GPU's memory: a step on fake tensors, whose storages are counted as torch makes and frees them.

The tensors say that they are on a CPU, as torch makes none of a GPU where there is none; nothing is computed. What is
counted is what an allocator is asked for, which is what the estimate is of.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import compiled

from factory import chunks
from factory.architecture import architecture
from factory.config import registry
from factory.plan.plan import Plan

GPU = ("hardware=h100_80gb", "stage=pt", "data.packing=true")


@pytest.fixture(autouse=True)
def a_gpus_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens' are float32 at a time as on a GPU, though the tensors say that they are on a CPU."""
    monkeypatch.setattr(chunks, "wide", lambda rows, *, on_cpu: rows)


def _counter() -> Any:
    """Bytes of all storages that are alive, `now`, and the most there ever were, `peak`."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Counter(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.now = self.peak = 0
            self._known: Any = weakref.WeakKeyDictionary()

        def add(self, value: Any) -> None:
            storage = value.untyped_storage()
            if storage not in self._known:
                self._known[storage] = True
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())

        def _gone(self, count: int) -> None:
            self.now -= count

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            for value in tree_leaves(made):
                if isinstance(value, torch.Tensor):
                    self.add(value)
            return made

    return Counter()


def _model(plan: Plan, settings: Any) -> Any:
    """On the meta device, its method attached."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    steps, config = plan.steps, AutoConfig.for_model(**plan.steps.load.config)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, attn_implementation=steps.patch.attention, dtype=getattr(torch, steps.load.dtype)
        )
        model.requires_grad_(False)
        attach = registry.run("methods", plan.settings.method.name).attach
        return attach(model, settings, steps.attach, architecture(steps.load.config))


@contextmanager
def _faked(plan: Plan, model: Any) -> Iterator[None]:
    """Every tensor of the model becomes a fake one, the trained ones of the type that they train in."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    trained, made = getattr(torch, plan.steps.attach.dtype), dict[int, Any]()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, old in [(name, old) for name, old in module._parameters.items() if old is not None]:
                if id(old) not in made:  # a tied head is the embedding
                    fake = torch.empty(old.shape, dtype=trained if old.requires_grad else old.dtype)
                    made[id(old)] = torch.nn.Parameter(fake, requires_grad=old.requires_grad)
                module._parameters[name] = made[id(old)]
            for name, old in [(name, old) for name, old in module._buffers.items() if old is not None]:
                module._buffers[name] = torch.empty(old.shape, dtype=old.dtype)
        yield


@pytest.fixture(autouse=True)
def maskless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a run without padding; of fake ids transformers cannot tell that there is none."""
    from transformers.models.llama import modeling_llama

    monkeypatch.setattr(modeling_llama, "create_causal_mask", lambda **_: None)


@pytest.fixture(autouse=True)
def written_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: fake tensors say that they are a CPU's, which widens the factors of such products."""
    import torch

    from factory import losses

    monkeypatch.setattr(losses, "_wide_product", lambda one, other: torch.mm(one, other, out_dtype=torch.float32))


def _peak(plan: Plan) -> int:
    """Bytes that are held at most in a step whose optimizer has its state."""
    import torch

    from factory import losses
    from factory.optimizers.run import plain
    from factory.steps.kernels import recompute

    steps, counted = plan.steps, _counter()
    settings = plan.settings.method
    model, kind = _model(plan, settings), getattr(torch, steps.train.autocast or steps.load.dtype)
    with _faked(plan, model):
        recompute(model, plan, architecture(steps.load.config))
        model.train()
        optimizer = plain(model, settings, plan, architecture(steps.load.config))
        for value in (*model.parameters(), *model.buffers()):
            counted.add(value)
        base = model.get_base_model() if plan.settings.method.name == "lora" else model
        ids = torch.zeros(plan.settings.stage.batch_size, steps.pack.max_length, dtype=torch.long)
        with counted:
            for _ in range(2):
                counted.peak = counted.now
                with torch.autocast("cpu", kind, enabled=steps.train.autocast is not None):
                    hidden = base.model(input_ids=ids, use_cache=False).last_hidden_state
                    chosen = hidden[:, :-1].reshape(-1, hidden.shape[-1])  # as the loss takes them
                    del hidden
                    head, target = base.lm_head.weight, ids[:, 1:].reshape(-1)
                    loss: Any = losses.LinearCrossEntropy.apply(chosen, head, target, kind)
                    del chosen
                loss.backward()
                del loss
                optimizer.step()
                optimizer.zero_grad()
    return counted.peak


@pytest.mark.parametrize("words", ["method=lora method.target_modules=[q_proj,v_proj,down_proj]", "method=full"])
def test_a_model_of_a_billion(words: str) -> None:
    shape = ("model=llama3.2_1b", "stage.batch_size=2", "data.max_length=512")
    plan = compiled(*GPU, *shape, *words.split(), training=False)
    peak = _peak(plan)
    assert plan.estimate.memory.total == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(
    "words",
    [
        "method=lora precision=pure_bf16",
        "method=lora compute.activation_checkpointing=true",
        "method=full",
    ],
)
def test_a_tiny_model(words: str, tiny_model: Path) -> None:
    shape = (f"model.path={tiny_model}", "stage.batch_size=4", "data.max_length=256")
    plan = compiled(*GPU, *shape, *words.split(), training=False)
    peak = _peak(plan)
    assert plan.estimate.memory.total == pytest.approx(peak, rel=0.05)
