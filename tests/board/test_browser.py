"""The page in a real browser, from the first choice to an exported model: `pytest -m slow tests/board`."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = which("chromium") or which("chromium-browser") or which("google-chrome")
IMAGES = os.environ.get("FACTORY_BOARD_IMAGES")  # a folder: pictures of the page are written there
SHORT = "tracking=none evaluate.samples=0 data.max_length=128 stage.logging_steps=1"
ROWS = "".join(
    f'{{"instruction": "What is {number} and {number}?", "output": "It is {2 * number}. Now count on."}}\n'
    for number in range(40)
)
MINUTE = 60_000  # milliseconds


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("board")
    printed = place / "printed"
    with printed.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "factory", "board", "board.port=0"], cwd=place, stdout=out, stderr=out
        )
    try:
        while (found := re.search(r"http://[\d.:]+", printed.read_text())) is None:
            assert server.poll() is None, printed.read_text()
            time.sleep(0.2)
        yield found[0]
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    made = context.new_page()
    made.set_default_timeout(2 * MINUTE)
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.goto(address)
    made.wait_for_selector("#plan .f-bar")
    _field(made, "stage.learning_rate").wait_for()
    yield made
    context.close()
    assert not errors


def _field(page: Any, path: str) -> Any:
    return page.locator(f'[id="key-{path}"]').locator("textarea, input").first


def _type(page: Any, path: str, text: str) -> None:
    field = _field(page, path)
    field.click()
    field.press("Control+a")
    field.press_sequentially(text)
    field.press("Tab")


def _command(page: Any, *parts: str) -> None:
    """Waits until the command line has these."""
    condition = "(parts) => parts.every((part) => document.querySelector('#command textarea').value.includes(part))"
    page.wait_for_function(condition, arg=list(parts))


def _paste(page: Any, text: str) -> None:
    box = page.locator("#command textarea")
    box.fill(text)
    box.press("Enter")


def _tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def _picture(page: Any, name: str) -> None:
    if IMAGES:
        page.wait_for_timeout(1500)
        page.screenshot(path=str(Path(IMAGES) / f"board-{name}.png"))


def test_a_refusal_stands_beside_its_field_and_its_button_mends_it(page: Any) -> None:
    _type(page, "stage.learning_rate", "-3")
    problem = page.locator("#key-stage\\.learning_rate").locator("xpath=ancestor::div[contains(@class,'column')][1]")
    problem.locator(".f-problem", has_text="-3.0").wait_for()
    page.wait_for_timeout(1500)  # what was typed before has been drawn and gone
    _picture(page, "refusal")
    page.locator("#fix-0").click()
    page.wait_for_selector("#plan .f-bar")
    assert "learning_rate" not in page.locator("#command textarea").input_value()
    assert _field(page, "stage.learning_rate").input_value() == "0.0002"


def test_a_line_fills_the_form_and_two_tabs_do_not_share_it(page: Any, browser: Any, address: str) -> None:
    _paste(page, "factory method=qlora stage=dpo model=llama3_8b method.rank=4 hardware=a100_40gb")
    page.wait_for_function("document.querySelector('#option-method input').value == 'qlora'")
    assert page.locator("#option-stage input").input_value() == "dpo"
    _field(page, "stage.beta").wait_for()
    page.get_by_text("8,030,261,248").wait_for()
    other = browser.new_context().new_page()
    other.goto(address)
    other.wait_for_selector("#plan .f-bar")
    assert other.locator("#option-method input").input_value() == "lora"
    _paste(page, "factory method=nope")
    page.locator(".f-problem", has_text="method=nope").wait_for()


def test_words_change_without_a_reload(page: Any) -> None:
    _type(page, "stage.max_steps", "7")
    _command(page, "stage.max_steps=7")
    for language, start in (("Русский", "Запустить"), ("中文", None), ("English", "Start")):
        page.locator("#language").get_by_text(language).click()
        if start is not None:
            page.locator("#start", has_text=start).wait_for()
        else:
            page.wait_for_function("/[\u4e00-\u9fff]/.test(document.querySelector('#start').innerText)")
            _picture(page, "chinese")
        assert "stage.max_steps=7" in page.locator("#command textarea").input_value()


def test_nothing_is_wider_than_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(1000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    _picture(page, "phone")


def test_the_whole_journey(page: Any, address: str) -> None:
    """Configure, preview, train 10 steps with a reload in between, chat, export: on the embedded model."""
    _picture(page, "configure")
    _paste(page, f"factory stage.max_steps=10 {SHORT}")
    _command(page, "stage.max_steps=10", "tracking=none")
    page.wait_for_selector("#plan .f-bar")
    page.locator("#upload input[type=file]").set_input_files(
        {"name": "mine.jsonl", "mimeType": "application/json", "buffer": ROWS.encode()}
    )
    _command(page, "data=file", "mine.jsonl")
    _tab(page, "Preview")
    page.locator("#preview-run").click()
    page.frame_locator("#preview iframe").get_by_text("Lengths").wait_for()
    _picture(page, "preview")
    _tab(page, "Configure")
    with page.expect_download() as saved:
        page.locator("#save").click()
    assert "max_steps: 10" in Path(saved.value.path()).read_text()
    page.locator("#start").click()
    page.locator("#state", has_text="running").wait_for()
    page.reload()
    page.wait_for_selector("#plan .f-bar")
    _tab(page, "Train")
    page.locator("#state", has_text="running").wait_for()
    page.locator("#state", has_text="finished").wait_for(timeout=10 * MINUTE)
    page.locator("#result", has_text="save_reload").wait_for()
    _picture(page, "train")
    _tab(page, "Chat")
    page.wait_for_function("document.querySelector('#chat-left input').value.includes('finished')")
    page.locator("#chat-load").click()
    page.locator("#chat-state", has_text="Ready").wait_for(timeout=5 * MINUTE)
    say = page.locator("#chat-say").locator("textarea, input").first
    say.fill("Name a colour.")
    say.press("Enter")
    page.locator("#talk-left .bot, #talk-left [data-testid=bot]").first.wait_for(timeout=3 * MINUTE)
    page.wait_for_timeout(8000)
    assert len(page.locator("#talk-left [data-testid=bot]").first.inner_text()) > 3
    _picture(page, "chat")
    _tab(page, "Export")
    page.locator("#export-of input").click()
    page.get_by_role("option").first.click()
    page.locator("#export-dir").locator("textarea, input").first.fill("exports/one")
    page.locator("#export-run").click()
    page.locator("#export-state", has_text="Done").wait_for(timeout=8 * MINUTE)
    _picture(page, "export")
