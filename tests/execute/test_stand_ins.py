"""What stands in for parts of torch, each case in a process of its own: what is imported cannot be taken back."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

BEGIN = "import sys, torch; from factory.execute import stand_ins\n"
INSTALLED = BEGIN + "stand_ins.install()\n"
# imports torch once, and is forked for each script: it and where it shall print are a line of the input
FORKED = """
import json, os, sys, torch
for line in sys.stdin:
    script, printed = json.loads(line)
    if not (child := os.fork()):
        out = os.open(printed, os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1), os.dup2(out, 2)
        exec(script, {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """What a script prints, which ends with 0."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", FORKED], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        talk = process.stdin, process.stdout

        def run(script: str, begin: str = INSTALLED) -> str:
            printed: Path = tmp_path_factory.mktemp("script") / "printed"
            print(json.dumps([begin + script, str(printed)]), file=talk[0], flush=True)
            code = talk[1].readline()
            assert code == "0\n", printed.read_text()
            return printed.read_text()

        yield run


def test_what_a_model_asks_imports_none_of_them(run: Run) -> None:
    script = """
import torch.utils.checkpoint
from factory.execute.told import telling
sys.modules["torchvision"] = None  # it asks for more
with telling(alone=True):
    from transformers import LlamaConfig, LlamaForCausalLM
with torch.device("meta"):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 8}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **sizes))
    bounds = ((5,), (2, 7), (0, 7, 2), (7, 0, -2), (0.0, 1.0, 0.25))
    ranges = [(torch.arange(*each), torch.arange(*each, device="cpu")) for each in bounds]
assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in ranges)
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0)
torch.utils.checkpoint.checkpoint(lambda x: 2 * x, weight, use_reentrant=False).sum().backward()
optimizer.step()
torch.testing.assert_close(weight.detach(), torch.full((3,), 0.9))
assert not isinstance(weight, torch.distributed.tensor.DTensor)
from torch.distributed.tensor import DTensor
print([name for name, module in sys.modules.items() if isinstance(module, stand_ins.StandIn)])
"""
    assert run(script).strip() == str(list(ALL))


ALL = ("torch._dynamo", "torch.distributed.tensor", "sympy", "torch.fx.experimental.symbolic_shapes")


def test_one_that_was_interrupted_becomes_real_when_it_is_asked_again(run: Run) -> None:
    run("""
import sympy
execute, sympy.__spec__.loader.exec_module = sympy.__spec__.loader.exec_module, lambda _: 1 / 0
try:
    sympy.Symbol
except ZeroDivisionError:
    pass
sympy.__spec__.loader.exec_module = execute
assert isinstance(sympy, stand_ins.StandIn) and sympy.Basic
assert str(sympy.Symbol("x")) == "x" and not isinstance(sympy, stand_ins.StandIn)
""")


def test_more_of_a_part_is_asked_of_the_real_one(run: Run) -> None:
    run("""
import torch._dynamo
assert torch._dynamo.eval_frame.OptimizedModule and isinstance(torch._dynamo, stand_ins.StandIn)
before = torch._dynamo.eval_frame
assert callable(before.innermost_fn) and not isinstance(torch._dynamo, stand_ins.StandIn)
""")


def test_what_is_empty_stays_what_it_is(run: Run) -> None:
    run("""
import torch._dynamo
empty = torch.nn.ModuleList()
assert torch._dynamo.disable(empty) is empty
assert torch._dynamo.disable(recursive=True)(empty) is empty
""")


def test_numbers_are_answered_as_by_the_real_one(run: Run) -> None:
    run("""
from torch.fx.experimental import symbolic_shapes
one, two = [(True,), (False,)], [(True, False), (True, True), (False, False)]
cases = {"sym_and": one + two, "sym_or": one + two, "is_nested_int": [(3,)], "has_guarding_hint": [(3,), (True,)]}
cases["sym_eq"] = [(1, 1), (1, 2), ((1, 2), [1, 2]), ((1, 2), (1, 3)), ((1,), (1, 2)), (((1,), 2), ([1], 2))]
cases["guarding_hint_or_throw"] = [(3,), (True,)]
asked = {name: getattr(symbolic_shapes, name) for name in stand_ins._OF_NUMBERS}
given = {name: [ask(*words) for words in cases.get(name, one)] for name, ask in asked.items()}
assert isinstance(symbolic_shapes, stand_ins.StandIn)
symbolic_shapes.become_real()
real = {name: getattr(symbolic_shapes, name) for name in asked if hasattr(symbolic_shapes, name)}  # of a release
assert len(real) >= 10 and all(real[name] is not asked[name] for name in real)
assert {name: given[name] for name in real} == {
    name: [ask(*words) for words in cases.get(name, one)] for name, ask in real.items()
}
""")


def test_formulas_are_for_the_real_one(run: Run) -> None:
    """Asked by a name that was taken before there was any."""
    run("""
from torch.fx.experimental.symbolic_shapes import guard_or_false, sym_or
from torch.fx.experimental import symbolic_shapes
free = symbolic_shapes.ShapeEnv().create_unbacked_symint()
assert guard_or_false(free > 3) is False
assert isinstance(sym_or(False, free > 3), torch.SymBool)
""")
    run("""
from torch.fx.experimental.symbolic_shapes import expect_true
assert expect_true(True, skip=1) is True  # the real one knows what else may be said
assert not isinstance(sys.modules["torch.fx.experimental.symbolic_shapes"], stand_ins.StandIn)
""")


@pytest.mark.parametrize(
    "asked",
    [
        "assert torch.compile(lambda x: x.sin() + 1, backend='eager')(torch.zeros(2)).tolist() == [1, 1]",
        "import torch._dynamo.utils as utils; assert torch._dynamo.exc.counters is utils.counters",
        "from torch._dynamo.eval_frame import OptimizedModule; assert OptimizedModule.__module__.startswith('torch')",
        "from torch._dynamo import config, optimize; assert callable(optimize)",
        "from torch.distributed.tensor import DTensor, Shard; assert issubclass(DTensor, torch.Tensor)",
        "import torch.distributed.tensor._api as api; assert torch.distributed.tensor.DTensor is api.DTensor",
        "import sympy.polys; assert sympy.Symbol('x') + 0 == sympy.Symbol('x')",
        "from torch.fx.experimental.symbolic_shapes import ShapeEnv; ShapeEnv()",
    ],
)
def test_it_becomes_the_real_one(asked: str, run: Run) -> None:
    run(asked + f"\nassert any(type(sys.modules[name]) is not stand_ins.StandIn for name in {ALL})")


def test_the_real_ones_stay_where_they_are_there(run: Run) -> None:
    run(
        """
import torch._dynamo
assert not isinstance(torch._dynamo, stand_ins.StandIn)
before = torch._dynamo.disable
stand_ins.install()
assert torch._dynamo.disable is before
""",
        BEGIN,
    )
