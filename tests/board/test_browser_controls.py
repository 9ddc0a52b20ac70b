"""Controls of the page in a real browser that need no model: `pytest -m slow tests/board`."""

import json
from pathlib import Path
from typing import Any

import browsing
import pytest

from factory.board.planned import Planner
from factory.plan.plan import to_yaml

pytestmark = pytest.mark.slow
ROWS = '{"instruction": "Name a river.", "output": "The Rhine."}\n' * 20


@pytest.fixture(scope="module")
def ended(place: Path) -> str:
    """A run that has ended; of its folder only what lists and forms read."""
    plan = Planner((place,))(()).plan
    assert plan is not None
    folder = place / "outputs" / "2026-11-30" / "10-00-00"
    folder.mkdir(parents=True)
    (folder / "plan.yaml").write_text(to_yaml(plan.with_settings(overrides=("evaluate.samples=7", "seed=3"))))
    (folder / "report.json").write_text(json.dumps({"status": "finished"}))
    return str(folder.relative_to(place))


def test_what_stands_in_the_line_is_what_starts(page: Any, place: Path) -> None:
    line = page.locator("#command textarea")
    line.fill("factory train method.rank=x")
    page.locator("#start").click()
    page.locator("#message", has_text="problems").wait_for()
    page.locator("#plan", has_text="1 to mend").wait_for()
    line.fill("factory 'a")
    page.locator("#start").click()
    page.locator("#message", has_text="a quote that opens").wait_for()
    page.wait_for_timeout(1500)
    assert page.locator("#start").is_visible()  # the tab is still open
    page.locator("#reset").click()
    page.wait_for_function("!document.querySelector('#command textarea').value.includes(\"'a\")")
    page.locator("#message", has_text="a quote").wait_for(state="hidden")
    assert not [*place.glob("outputs/*/*-*-*/plan.yaml")]


def test_a_line_that_is_left_is_read(page: Any) -> None:
    page.locator("#command textarea").fill("factory train stage.max_steps=7")
    browsing.tab(page, "Preview")
    browsing.tab(page, "Configure")
    page.wait_for_function("document.querySelector('[id=\"key-stage.max_steps\"] :is(textarea, input)').value == '7'")


def test_settings_are_saved_before_anything_was_set(page: Any) -> None:
    with page.expect_download(timeout=20_000) as saved:
        page.locator("#save").click()
    assert Path(saved.value.path()).read_text() == "# @package _global_\n"
    browsing.paste(page, "factory train 'seed=${nope}'")
    page.locator(".f-problem", has_text="nope").wait_for()
    page.wait_for_function("document.querySelector('#save').matches('[disabled], :has([disabled])')")


def test_a_preview_is_of_the_settings(page: Any, place: Path) -> None:
    (place / "rows.jsonl").write_text(ROWS)
    browsing.paste(page, "factory data=file data.path=rows.jsonl data.max_length=128")
    browsing.command(page, "rows.jsonl")
    browsing.tab(page, "Preview")
    page.locator("#preview-run").click()
    page.frame_locator("#preview iframe").get_by_text("Lengths").wait_for()
    browsing.tab(page, "Configure")
    browsing.type_into(page, "stage.max_steps", "7")
    browsing.command(page, "stage.max_steps=7")
    page.locator("#preview iframe").wait_for(state="detached")


def test_a_recipe_chooses_the_options(page: Any) -> None:
    page.locator("#recipe input").click()
    page.get_by_role("option", name="tool_use", exact=True).click()
    page.locator("#option-data", has_text="glaive_function_calling_v2").wait_for()


def test_an_evaluation_is_shown_with_the_values_of_its_run(page: Any, ended: str) -> None:
    browsing.tab(page, "Evaluate")
    value = "document.querySelector('[id=\"key-evaluate.samples\"] :is(textarea, input)').value"
    page.wait_for_function(f"{value} == '7'")
    page.wait_for_timeout(1500)  # it is drawn anew as the run is chosen
    browsing.type_into(page, "evaluate.samples", "5")
    page.wait_for_timeout(1500)
    page.locator("#language").get_by_text("Русский").click()
    page.get_by_role("tab", name="Оценка").wait_for()
    page.wait_for_timeout(3000)
    assert page.evaluate(value) == "5"


def test_what_can_be_done_with_a_run_is_said(page: Any, ended: str) -> None:
    browsing.tab(page, "Train")
    page.locator("#state", has_text="finished").wait_for()
    page.locator("#resume").click()
    message = page.locator("#run-message")
    message.get_by_text("nothing to go on with").wait_for()
    page.wait_for_timeout(5000)  # the list is drawn anew meanwhile
    assert message.get_by_text("nothing to go on with").is_visible()
    page.locator("#again").click()
    browsing.command(page, "seed=3", "evaluate.samples=7")


def test_a_reload_keeps_the_language_and_the_theme(page: Any) -> None:
    page.locator("#language").get_by_text("Русский").click()
    page.locator("#start", has_text="Запустить").wait_for()
    assert page.locator("html").get_attribute("lang") == "ru"
    dark = page.locator("body").evaluate("body => body.classList.contains('dark')")
    page.locator("#theme").click()
    page.reload()
    page.locator("#start", has_text="Запустить").wait_for(timeout=20_000)
    assert page.locator("html").get_attribute("lang") == "ru"
    assert page.locator("body").evaluate("body => body.classList.contains('dark')") != dark
