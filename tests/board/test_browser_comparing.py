"""The page in a real browser where there are several models: a sweep, its comparison, scored answers, a blind vote.

`pytest -m slow tests/board`. On a tiny random model, but for pictures, whose answers are to be read.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import browsing
import psutil
import pytest
import tiny
from browsing import MINUTE

pytestmark = pytest.mark.slow
SHORT = "stage.max_steps=6 stage.logging_steps=1 evaluate.samples=0 data.max_samples=20 stage.learning_rate=1e-3"
MODEL = "data.max_length=128" if browsing.IMAGES else "model.path=model data.max_length=256"


@pytest.fixture(scope="module")
def swept(browser: Any, address: str, place: Path) -> Path:
    """The folder of a sweep of two methods that the page was asked for."""
    tiny.save(place / "model", max_position_embeddings=512)
    with browsing.opened(browser, address) as page:
        browsing.paste(page, f"factory {SHORT} {MODEL}")
        browsing.command(page, "stage.max_steps=6")
        browsing.tab(page, "Compare")
        page.locator("#sweep-run").click()
        page.locator("#sweep-message", has_text="two methods or more").wait_for()
        for method in ("lora", "ia3"):
            page.locator("#sweep-methods").get_by_label(method, exact=True).check()
        page.locator("#sweep-run").click()
        page.locator("#state", has_text="running").wait_for()
        page.locator("#state", has_text="finished").wait_for(timeout=15 * MINUTE)
    (found,) = place.glob("multirun_sweeps/*/*/")
    return found


def test_a_sweep_is_compared(page: Any, swept: Path) -> None:
    browsing.tab(page, "Compare")
    page.locator("#compare-run").click()
    page.locator("#comparison", has_text="two runs or more").wait_for()
    page.locator("#compare-runs input").click()
    page.get_by_role("option").filter(has_text="method=lora,ia3").first.click()
    page.keyboard.press("Escape")
    page.locator("#compare-run").click()
    shown = page.frame_locator("#comparison iframe")
    for method in ("lora", "ia3"):
        shown.locator("tbody tr", has_text=f"method={method}").first.wait_for()
    shown.locator("svg polyline, svg path").first.wait_for()
    logged = page.locator("#compare-logged")
    logged.get_by_text("ui --backend-store-uri sqlite:///mlflow.db").wait_for()
    assert logged.locator("code").count() == 1  # both runs are in one store
    browsing.picture(page, "compare", "#comparison")


def test_a_run_is_evaluated_and_its_answers_are_listed(page: Any, swept: Path, place: Path) -> None:
    browsing.tab(page, "Evaluate")
    page.wait_for_function("document.querySelector('#evaluate-of input').value.includes('finished')")
    page.locator("#key-evaluate\\.generation input").check()
    browsing.type_into(page, "evaluate.max_samples", "4")
    browsing.type_into(page, "evaluate.max_new_tokens", "8")
    page.locator("#evaluate-run").click()
    while not [*place.glob("outputs/*/*/report.json")]:  # nothing else is there yet
        page.wait_for_timeout(500)
    page.locator("#state", has_text="finished").wait_for()
    browsing.tab(page, "Evaluate")
    page.wait_for_function("document.querySelector('#results-of input').value.includes('evaluate ')")
    for figure in ("perplexity", "bleu4", "rougeL"):
        page.locator("#figures dt", has_text=figure).first.wait_for()
    answers = page.locator("#answers")
    for column in ("answer", "reference", "rougeL"):
        answers.get_by_text(column, exact=True).first.wait_for()
    assert answers.locator("tbody tr").count() == 2  # so many of the 20 rows are held out
    answers.scroll_into_view_if_needed()
    browsing.picture(page, "evaluate")
    page.locator("#theme").click()
    browsing.picture(page, "dark")


def test_a_vote_is_blind_until_it_is_given(page: Any, swept: Path, place: Path) -> None:
    browsing.tab(page, "Chat")
    page.wait_for_function("document.querySelector('#chat-left input').value.includes('finished')")
    page.locator("#chat-right input").click()
    page.get_by_role("option", name="The base, untrained").click()
    page.locator("#vote-blind input").check()
    page.locator("#vote-left").click()
    page.locator("#verdict", has_text="Load two models").wait_for()
    page.locator("#chat-load").click()
    page.locator("#chat-state", has_text="Ready").wait_for(timeout=8 * MINUTE)
    browsing.fill(page, "#chat-tokens input[type=number]", "16" if not browsing.IMAGES else "40")
    browsing.say(page, "Name three rivers.")
    for side in ("left", "right"):
        page.wait_for_function(
            "(side) => document.querySelector(`#talk-${side} [data-testid=bot]`)?.innerText.trim().length > 3", arg=side
        )
    assert page.locator("#verdict").inner_text().strip() == ""
    page.wait_for_timeout(4000)
    page.locator("#vote-right").click()
    page.locator("#verdict", has_text="right was").wait_for()
    browsing.picture(page, "vote")
    (vote,) = map(json.loads, (place / "outputs/.board/votes.jsonl").read_text().splitlines())
    assert vote["vote"] == "right" and vote["left"] != vote["right"]
    assert [each["content"] for each in vote["questions"]] == ["Name three rivers."]


def test_a_killed_page_takes_its_models_along_and_no_run(page: Any, swept: Path, place: Path, server: Any) -> None:
    """The last test of the module: the server is gone then."""
    browsing.tab(page, "Chat")
    page.wait_for_function("document.querySelector('#chat-left input').value.includes('finished')")
    page.locator("#chat-load").click()
    page.locator("#chat-state", has_text="Ready").wait_for(timeout=8 * MINUTE)
    browsing.tab(page, "Configure")
    browsing.paste(page, f"factory {SHORT} {MODEL} stage.max_steps=3000 tracking=none")
    browsing.command(page, "stage.max_steps=3000")
    page.locator("#start").click()
    page.locator("#state", has_text="train").wait_for(timeout=5 * MINUTE)
    inside = [each for each in psutil.process_iter(["cmdline", "cwd"]) if each.info["cwd"] == str(place)]
    served = [each for each in inside if "serve" in (each.info["cmdline"] or ())]
    training = [each for each in inside if "train" in (each.info["cmdline"] or ())]
    assert served and training
    try:
        server.send_signal(signal.SIGKILL)
        assert not psutil.wait_procs(served, timeout=60)[1]
        time.sleep(2)
        assert all(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in training)
    finally:
        for each in training:
            os.kill(each.pid, signal.SIGINT)
        psutil.wait_procs(training, timeout=120)
