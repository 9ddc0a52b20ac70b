"""What no module may do, read from the sources: objects out of files, code out of texts, shells, templates unboxed."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "factory"


@cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in the package: (file, name as it is written, call)."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((file.relative_to(ROOT).as_posix(), ast.unparse(node.func), node))
    return found


def given(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(word.value) for word in call.keywords if word.arg == name), None)


def of(*names: str) -> Iterator[tuple[str, ast.Call]]:
    return ((file, call) for file, name, call in calls() if name in names)


@pytest.mark.parametrize(
    ("names", "where"),
    [
        # by name: where it is done, if anywhere
        (("yaml.load", "yaml.safe_load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all"), {"config/parsed.py"}),
        (("OmegaConf.load",), set()),
        (("pickle.load", "pickle.loads", "dill.load", "joblib.load", "marshal.loads", "shelve.open"), set()),
        (("eval", "exec", "__import__", "runpy.run_path", "os.system", "os.popen"), set()),
        (("hydra.utils.instantiate", "instantiate"), set()),
        (("Environment", "jinja2.Environment", "SandboxedEnvironment", "jinja2.Template"), set()),
        (("opened.extractall",), {"benchmarks/questions.py"}),
        (("shutil.unpack_archive", "tarfile.open"), set()),
        (("importlib.import_module", "pkgutil.resolve_name", "resolve_name"), None),
    ],
)
def test_it_is_done_in_its_one_place_alone(names: tuple[str, ...], where: set[str] | None) -> None:
    found = {file for file, _ in of(*names)}
    if where is None:  # every name that is imported is one of ours, but the user's own function, which is asked for
        where = {"config/function.py", "doctor/probe.py", "execute/executor.py", "optimizers/run.py"}
        where |= {"config/registry.py", "steps/engine.py", "tracking/delivery.py"}
    assert found == where


def test_torch_and_numpy_read_no_objects() -> None:
    torch_loads = list(of("torch.load"))
    assert torch_loads and all(given(call, "weights_only") == "True" for _, call in torch_loads)
    numpy_loads = list(of("np.load", "numpy.load"))
    assert numpy_loads and all(given(call, "allow_pickle") == "False" for _, call in numpy_loads)


def test_no_program_is_started_by_a_shell() -> None:
    started = list(of("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output"))
    assert started and all(given(call, "shell") is None for _, call in started)


def test_code_of_a_model_is_trusted_where_the_user_says_so() -> None:
    """Nowhere is it a constant, but behind the question whether it is trusted."""
    said = [(file, given(call, "trust_remote_code")) for file, _, call in calls() if given(call, "trust_remote_code")]
    assert {file for file, value in said if value == "True"} == {"steps/walk.py"}
    assert len(said) > 5
    source = (ROOT / "steps" / "walk.py").read_text(encoding="utf-8")
    assert 'elif "auto_map" in asked["config"] and trusted:' in source
