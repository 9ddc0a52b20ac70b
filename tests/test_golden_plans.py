"""What typical command lines plan: each change of a default or of a rule's words shows as a difference here."""

import plans
import pytest

AGAIN = "python tests/plans.py writes them anew: see in `git diff` whether each change is meant"


@pytest.mark.parametrize("name", plans.LINES)
def test_golden(name: str) -> None:
    assert plans.golden(name) == (plans.GOLDEN / f"{name}.txt").read_text(encoding="utf-8"), AGAIN


def test_each_command_line_has_its_file_and_is_legal_unless_it_says_so() -> None:
    files = {path.stem: path.read_text(encoding="utf-8") for path in plans.GOLDEN.glob("*.txt")}
    assert set(files) == set(plans.LINES)
    for name, text in files.items():
        assert ("\n[" in text) == name.startswith("refused"), name
        assert "/tmp" not in text and str(plans.GOLDEN.parents[2]) not in text, name
