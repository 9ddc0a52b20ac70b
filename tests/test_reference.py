"""The reference pages are as the schema and the options are."""

import pytest
import reference

from factory import cli, templates
from factory.config import groups, settings


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_the_page_is_as_what_it_is_about(name: str) -> None:
    text = (reference.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert reference.page(name) == text, "make golden writes it anew: see in `git diff` whether each change is meant"


def test_no_page_is_left_over() -> None:
    assert {path.stem for path in reference.FOLDER.glob("*.md")} == set(reference.PAGES)


def test_all_that_there_is_has_a_row() -> None:
    everything = {
        "verbs": [*cli.VERBS],
        "keys": [key.path for key in settings.all_keys()],
        "options": [*(name for group in groups.GROUPS for name in groups.options(group)), *templates.names()],
    }
    for name, found in everything.items():
        page = reference.page(name)
        assert not [each for each in found if f"\n| `{each}` | " not in page], name
