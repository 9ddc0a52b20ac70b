"""The page in a real browser, from the first choice to an exported model: `pytest -m slow tests/board`."""

import re
from pathlib import Path
from typing import Any

import browsing
import pytest

pytestmark = pytest.mark.slow
SHORT = "tracking=none evaluate.samples=0 data.max_length=128 stage.logging_steps=1"
ROWS = "".join(
    f'{{"instruction": "What is {number} and {number}?", "output": "It is {2 * number}. Now count on."}}\n'
    for number in range(40)
)


def test_a_refusal_stands_beside_its_field_and_its_button_mends_it(page: Any) -> None:
    browsing.type_into(page, "stage.learning_rate", "-3")
    problem = page.locator("#key-stage\\.learning_rate").locator("xpath=ancestor::div[contains(@class,'column')][1]")
    problem.locator(".f-problem", has_text="-3.0").wait_for()
    page.wait_for_timeout(1500)  # what was typed before has been drawn and gone
    browsing.picture(page, "refusal")
    page.locator(".f-give").first.click()
    page.wait_for_selector("#plan .f-bar")
    assert "learning_rate" not in page.locator("#command textarea").input_value()
    page.wait_for_function(
        "document.querySelector('[id=\"key-stage.learning_rate\"] :is(textarea, input)').value == '0.0002'"
    )


def test_a_line_fills_the_form_and_two_tabs_do_not_share_it(page: Any, browser: Any, address: str) -> None:
    browsing.paste(page, "factory method=qlora stage=dpo model=llama3_8b method.rank=4 hardware=a100_40gb")
    page.wait_for_function("document.querySelector('#option-method input').value == 'qlora'")
    assert page.locator("#option-stage input").input_value() == "dpo"
    browsing.field(page, "stage.beta").wait_for()
    page.get_by_text("8,030,261,248").wait_for()
    other = browser.new_context().new_page()
    other.goto(address)
    other.wait_for_selector("#plan .f-bar")
    assert other.locator("#option-method input").input_value() == "lora"
    browsing.paste(page, "factory method=nope")
    page.locator(".f-problem", has_text="method=nope").wait_for()


def test_words_change_without_a_reload(page: Any) -> None:
    browsing.type_into(page, "stage.max_steps", "7")
    browsing.command(page, "stage.max_steps=7")
    for language, start in (("Русский", "Запустить"), ("中文", None), ("English", "Start")):
        page.locator("#language").get_by_text(language).click()
        if start is not None:
            page.locator("#start", has_text=start).wait_for()
        else:
            page.wait_for_function("/[\u4e00-\u9fff]/.test(document.querySelector('#start').innerText)")
            browsing.picture(page, "chinese")
        assert "stage.max_steps=7" in page.locator("#command textarea").input_value()


def test_nothing_is_wider_than_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(1000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    browsing.picture(page, "phone")


def test_the_whole_journey(page: Any, address: str) -> None:
    """Configure, preview, train 10 steps with a reload in between, chat, export: on the embedded model."""
    browsing.picture(page, "configure")
    browsing.paste(page, f"factory stage.max_steps=10 {SHORT}")
    browsing.command(page, "stage.max_steps=10", "tracking=none")
    page.wait_for_selector("#plan .f-bar")
    page.locator("#upload input[type=file]").set_input_files(
        {"name": "mine.jsonl", "mimeType": "application/json", "buffer": ROWS.encode()}
    )
    browsing.command(page, "data=file", "mine.jsonl")
    browsing.tab(page, "Preview")
    page.locator("#preview-run").click()
    page.frame_locator("#preview iframe").get_by_text("Lengths").wait_for()
    browsing.picture(page, "preview")
    browsing.tab(page, "Configure")
    with page.expect_download() as saved:
        page.locator("#save").click()
    assert "max_steps: 10" in Path(saved.value.path()).read_text()
    page.locator("#start").click()
    page.locator("#state", has_text="running").wait_for()
    page.reload()
    page.wait_for_selector("#plan .f-bar")
    browsing.tab(page, "Train")
    page.locator("#state", has_text="running").wait_for()
    page.locator("#state", has_text="finished").wait_for(timeout=10 * browsing.MINUTE)
    page.locator("#result", has_text="resume_point").wait_for()
    browsing.picture(page, "train")
    browsing.tab(page, "Chat")
    page.wait_for_function("document.querySelector('#chat-left input').value.includes('finished')")
    page.locator("#chat-load").click()
    page.locator("#chat-state", has_text="Ready").wait_for(timeout=5 * browsing.MINUTE)
    say = page.locator("#chat-say").locator("textarea, input").first
    say.fill("Name a colour.")
    say.press("Enter")
    page.locator("#talk-left .bot, #talk-left [data-testid=bot]").first.wait_for(timeout=3 * browsing.MINUTE)
    page.wait_for_timeout(8000)
    assert len(page.locator("#talk-left [data-testid=bot]").first.inner_text()) > 3
    browsing.picture(page, "chat")
    browsing.tab(page, "Export")
    page.locator("#export-of input").click()
    page.get_by_role("option").first.click()
    page.locator("#export-dir").locator("textarea, input").first.fill("exports/one")
    page.locator("#export-run").click()
    ended = page.locator("#export-state, #export-log", has_text=re.compile("Done|ended with code|fix:"))
    ended.first.wait_for(timeout=8 * browsing.MINUTE)
    assert page.locator("#export-state").inner_text() == "Done", page.locator("#export-log").inner_text()
    browsing.picture(page, "export")
