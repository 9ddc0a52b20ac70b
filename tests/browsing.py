"""The board's page as a person drives it in a browser, and pictures of it."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IMAGES = os.environ.get("FACTORY_BOARD_IMAGES")  # a folder: pictures of the page are written there
MINUTE = 60_000  # milliseconds


@contextmanager
def opened(browser: Any, address: str) -> Iterator[Any]:
    """A new visitor's page, in which no script failed."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    made = context.new_page()
    made.set_default_timeout(2 * MINUTE)
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.goto(address)
    made.wait_for_selector("#plan .f-bar")
    field(made, "stage.learning_rate").wait_for()
    yield made
    context.close()
    assert not errors


def field(page: Any, path: str) -> Any:
    return page.locator(f'[id="key-{path}"]').locator("textarea, input").first


def type_into(page: Any, path: str, text: str) -> None:
    box = field(page, path)
    box.click()
    box.press("Control+a")
    box.press_sequentially(text)
    box.press("Tab")


def command(page: Any, *parts: str) -> None:
    """Waits until the command line has these."""
    condition = "(parts) => parts.every((part) => document.querySelector('#command textarea').value.includes(part))"
    page.wait_for_function(condition, arg=list(parts))


def paste(page: Any, text: str) -> None:
    box = page.locator("#command textarea")
    box.fill(text)
    box.press("Enter")


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def picture(page: Any, name: str, of: str | None = None) -> None:
    """Of the window or of an element, in 128 colours, which are enough: a third of the bytes."""
    if not IMAGES:
        return
    from PIL import Image

    page.wait_for_timeout(1500)
    shot = page.screenshot() if of is None else page.locator(of).screenshot()
    taken = Image.open(io.BytesIO(shot)).convert("RGB")
    taken.quantize(128).save(Path(IMAGES) / f"board-{name}.png", optimize=True)


def fill(page: Any, selector: str, text: str) -> None:
    box = page.locator(selector)
    box.fill(text)
    box.press("Tab")


def say(page: Any, text: str) -> None:
    """In the chat."""
    box = page.locator("#chat-say").locator("textarea, input").first
    box.fill(text)
    box.press("Enter")
