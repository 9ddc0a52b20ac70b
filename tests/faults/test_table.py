"""The table of faults is that of the docs, and each of its rows is shown by tests that are there."""

import ast
from pathlib import Path

from table import ASKED, DOC, OPEN, ROOT, ROWS, VERBS, document


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_the_docs_have_it() -> None:
    assert DOC.read_text(encoding="utf-8") == document(), "python tests/faults/table.py writes it anew"


def test_each_row_is_shown() -> None:
    for row in ROWS:
        assert row.tests and set(row.verbs) <= set(VERBS), row.fault
        for test in row.tests:
            file, _, name = test.partition("::")
            assert name in functions(ROOT / "tests" / file), test


def test_each_test_has_a_row() -> None:
    named = {test for row in ROWS for test in row.tests}
    here = Path(__file__).parent
    files = [file for file in here.glob("test_*.py") if file != Path(__file__)]
    assert {f"faults/{file.name}::{name}" for file in files for name in functions(file)} <= named


def test_what_every_verb_meets_is_shown_or_said_to_be_open() -> None:
    for fault in (ASKED, "SIGKILL, a crash, a power cut", "read-only folder", *OPEN):
        shown = {verb for row in ROWS if row.fault == fault for verb in row.verbs}
        assert shown | OPEN.get(fault, {}).keys() == set(VERBS) and not shown & OPEN.get(fault, {}).keys(), fault
