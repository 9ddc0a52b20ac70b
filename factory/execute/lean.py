"""What a process imports for its plans, and no more: libraries import each other because they are installed.

bitsandbytes compiles functions with torch's inductor as it is imported, for where it has no kernels, as on a CPU;
scipy serves losses of detectors: a second of CPU time and 70 MiB in all (docs/measurements.md). DeepSpeed imports
MLflow, for a tuner of its own. torchvision, which transformers imports with every model, serves those that see; torchao
and hqq, which it imports as well, bring torch's compiler and 118 MiB. What stands in for more is in stand_ins.py, what
libraries need not find out in told.py.
"""

import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from factory import registry
from factory.estimate.runtime import is_alone, reads_text_alone
from factory.execute import stand_ins
from factory.execute.told import telling
from factory.garbage import collect_as_usual, collect_seldom
from factory.optimizers import spec as optimizers
from factory.plan import Plan
from factory.quantizers.spec import holding
from factory.ranks.spec import ZERO

_QUANTIZERS = ("hqq", "torchao")  # which models and adapters import where they are installed
_ASKED = ("is_bnb_available", "is_bnb_4bit_available", "is_hqq_available", "is_torchao_available")


def imports(*plans: Plan, adapters: bool = False) -> None:
    """The libraries that these plans need, once for the process: another plan may need what is left out.

    `adapters`: further ones may be put on their models.
    """
    collect_seldom()
    if not any(plan.steps.train.ranks.strategy in ZERO for plan in plans):  # accelerate asks it when weights are saved
        sys.modules.setdefault("deepspeed", None)  # type: ignore[arg-type]
    alone, quantized = all(is_alone(plan.steps) for plan in plans), any(map(_is_quantized, plans))
    quantizers = () if any(map(_is_held_otherwise, plans)) else _QUANTIZERS
    with telling(alone=alone):
        importlib.import_module("torch")
        if alone:
            stand_ins.install()
        with _hidden(*_unseen(plans, quantizers)):
            importlib.import_module("transformers.modeling_utils")
        if quantized or any(plan.steps.train.optimizer in optimizers.PACKAGES for plan in plans):
            on_cpu = all(plan.steps.load.device == "cpu" for plan in plans)
            with _uncompiled() if on_cpu else nullcontext():
                importlib.import_module("bitsandbytes")
        if adapters or any(map(_has_adapter, plans)):
            with _hidden(*(() if quantized else ("bitsandbytes",)), *quantizers):
                asked = importlib.import_module("peft").import_utils
                for name in _ASKED:
                    getattr(asked, name)()  # PEFT does for each layer, and keeps what it hears first
        elif any(plan.steps.train.optimizer == "adafactor" for plan in plans):
            with _hidden("peft"):  # which transformers imports with its optimizers, for its own trainer
                importlib.import_module("transformers.optimization")
    gc.freeze()  # what is there now stays, and need not be looked through again
    collect_as_usual()


def _unseen(plans: Sequence[Plan], quantizers: tuple[str, ...]) -> tuple[str, ...]:
    """What models do without. Who has imported transformers before, as a user's own file may, made it look already."""
    if "transformers" in sys.modules:
        return ()
    images = ("torchvision",) if all(reads_text_alone(plan.steps) for plan in plans) else ()
    return ("scipy", *images, *quantizers)


def _has_adapter(plan: Plan) -> bool:
    method = registry.spec("methods", plan.steps.attach.method)
    return plan.steps.load.adapter is not None or registry.hook(method, "peft") is not None


def _is_quantized(plan: Plan) -> bool:
    """Whether PEFT may meet a layer of bitsandbytes: under the adapter, in a judge, or in what is exported."""
    steps = plan.steps
    return any((holding(steps.quantize, steps.load.config), steps.load.reward, plan.export))


def _is_held_otherwise(plan: Plan) -> bool:
    """Whether another library than bitsandbytes may hold weights there."""
    steps = plan.steps
    return any((holding(steps.quantize, steps.load.config) - {"bitsandbytes"}, steps.load.reward, plan.export))


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Functions that are compiled as they are imported stay as they are."""
    torch: Any = sys.modules["torch"]
    compiler, torch.compile = torch.compile, stand_ins.itself
    try:
        yield
    finally:
        torch.compile = compiler


@contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """As if these were not installed, for those who ask `importlib.util.find_spec` meanwhile (import system, 5.3.1)."""
    taken = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(taken))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in taken:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)
