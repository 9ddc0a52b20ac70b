"""Rows from the user's own code: given, or refused in the words of that code's own error."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.config.refusal import UserError
from factory.data import function
from factory.data.function import READ_WHOLE, look, rows

CODE = """
import json

def three():
    for number in range(3):
        yield {"text": f"row {number}", "n": number}

def listed():
    return [{"text": "a"}] * 1500

def endless():
    while True:
        yield {"text": "a"}

def halfway():
    yield {"text": "a"}
    raise ZeroDivisionError("no more")

def exits():
    raise SystemExit("enough")

def asks(path):
    return []

def asks_for_a_module():
    import nowhere_at_all

def text():
    return "rows"

def one():
    return {"text": "a"}

def nothing():
    pass

async def later():
    return []

def numbers():
    return [1, 2]

def numbered():
    return [{1: "a"}]

def half():
    return [{"text": "\\ud83d"}]

def round():
    row = {}
    row["row"] = row
    return [row]

class Maker:
    @staticmethod
    def rows():
        return ({"text": "made"},)

VALUE = 3
"""


@pytest.fixture
def module(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "rows_of_mine"
    (here / f"{name}.py").write_text(CODE)
    (here / "broken_module.py").write_text("x = 1\n1 / 0\n")
    (here / "bad_syntax.py").write_text("def rows(:\n")
    (here / "asking.py").write_text("import nowhere_at_all\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    for imported in (name, "broken_module", "bad_syntax", "asking"):
        sys.modules.pop(imported, None)


def test_rows_are_given_from_any_row_on(module: str) -> None:
    wanted = [{"text": f"row {number}", "n": number} for number in range(3)]
    assert list(rows(f"{module}:three")) == wanted
    assert list(rows(f"{module}:three", 2)) == wanted[2:]
    assert list(rows(f"{module}:three", 5)) == []
    assert list(rows(f"{module}:Maker.rows")) == [{"text": "made"}]


@pytest.mark.parametrize(
    ("path", "rule", "wrong"),
    [
        ("rows.jsonl", "function-missing", "not of the form module:function"),
        ("rows_of_mine:", "function-missing", "not of the form module:function"),
        ("rows_of_mine.py:three", "function-missing", "there is no module rows_of_mine.py"),
        ("rows_of_min:three", "function-missing", "there is no module rows_of_min"),
        ("rows_of_mine:thre", "function-missing", "rows_of_mine has no thre"),
        ("rows_of_mine:VALUE", "function-missing", "VALUE is of type int, nothing to call"),
        ("broken_module:rows", "function-failed", "importing it raised ZeroDivisionError: division by zero (broken_mo"),
        ("bad_syntax:rows", "function-failed", "SyntaxError: invalid syntax (bad_syntax.py, line 1)"),
        ("asking:rows", "function-failed", "ModuleNotFoundError: No module named 'nowhere_at_all' (asking.py, line 1)"),
        ("rows_of_mine:asks_for_a_module", "function-failed", "No module named 'nowhere_at_all' (rows_of_mine.py"),
        ("rows_of_mine:halfway", "function-failed", "raised after 1 rows ZeroDivisionError: no more (rows_of_mine.py"),
        ("rows_of_mine:exits", "function-failed", "it raised SystemExit: enough"),
        ("rows_of_mine:asks", "function-failed", "TypeError: asks() missing 1 required positional argument: 'path'"),
        ("rows_of_mine:text", "function-rows", "it returned of type str, nothing to take rows from"),
        ("rows_of_mine:one", "function-rows", "of type dict"),
        ("rows_of_mine:nothing", "function-rows", "of type NoneType"),
        ("rows_of_mine:later", "function-rows", "of type coroutine"),
        ("rows_of_mine:numbers", "function-rows", "row 1 is of type int"),
        ("rows_of_mine:numbered", "function-rows", "names of columns that are no texts"),
        ("rows_of_mine:half", "function-rows", "row 1 could not stand in a file"),
        ("rows_of_mine:round", "function-rows", "row 1 could not stand in a file"),
    ],
)
def test_what_is_no_function_of_rows_is_refused(module: str, path: str, rule: str, wrong: str) -> None:
    with pytest.raises(UserError) as error:
        list(rows(path))
    (refusal,) = error.value.refusals
    assert (refusal.rule, refusal.setting) == (rule, f"path={path}")
    assert wrong in refusal.wrong
    assert "function.py" not in refusal.wrong  # a place in the user's code, not in ours


def test_near_names_are_told(module: str) -> None:
    with pytest.raises(UserError, match=r"did you mean rows_of_mine\?"):
        list(rows("rows_of_min:three"))
    with pytest.raises(UserError, match=r"did you mean three\?"):
        list(rows("rows_of_mine:thre"))


def test_looking_takes_few_rows_and_knows_what_it_saw(module: str, here: Path) -> None:
    assert look(f"{module}:three")[:2] == (list(rows(f"{module}:three")), 3)
    assert look(f"{module}:listed")[1] == 1500
    endless = look(f"{module}:endless")
    assert (len(endless.rows), endless.total) == (READ_WHOLE, None)
    assert len({look(f"{module}:{name}").sha256 for name in ("three", "listed", "endless")}) == 3


def test_the_digest_changes_with_few_rows_and_with_the_code_of_many(module: str, here: Path) -> None:
    def digests() -> list[str]:
        sys.modules.pop(module, None)
        return [look(f"{module}:{name}").sha256 for name in ("three", "listed")]

    few, many = digests()
    (here / f"{module}.py").write_text(CODE + "\n# longer\n")
    assert digests()[0] == few
    assert digests()[1] != many
    (here / f"{module}.py").write_text(CODE.replace("range(3)", "range(2)  "))
    assert digests()[0] != few


def test_what_is_installed_is_not_hidden_by_a_file_here(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (here / "json.py").write_text("1 / 0")
    with pytest.raises(UserError, match="json has no rows"):
        list(rows("json:rows"))
    assert function.json is json


def test_an_object_is_known_by_its_kind_and_not_by_its_address() -> None:
    class Silent:
        pass

    def total(*values: object) -> str:
        made = function.Sum()
        assert [row["x"] for row in made.of({"x": value} for value in values)] == [*values]
        return made.hexdigest()

    assert total(Silent()) == total(Silent()) != total(1) != total("1")
