"""Chat: with any run, and another beside it, over `factory serve`: the same prompts, sampling and streams."""

import json
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr
import httpx

from factory.board.children import Server
from factory.board.line import Overrides, name_of, spelt
from factory.board.said import words
from factory.board.tabs.train import named

if TYPE_CHECKING:
    from factory.board.page import Page

_NOTHING, _BASE = "", "base"
_PATIENCE = httpx.Timeout(600, connect=10)
Talk = list[dict[str, Any]]


def build(page: "Page") -> None:
    with gr.Row():
        left = page.say(gr.Dropdown([], label=page.text("chat_left"), elem_id="chat-left"), label="chat_left")
        right = page.say(gr.Dropdown([], label=page.text("chat_right"), elem_id="chat-right"), label="chat_right")
        load = page.say(gr.Button(page.text("chat_load"), elem_id="chat-load", scale=0, min_width=120),
                        value="chat_load")  # fmt: skip
    state = gr.Markdown(elem_id="chat-state")
    with gr.Row():
        talks = [gr.Chatbot(elem_id=f"talk-{side}", height=380, show_label=False) for side in ("left", "right")]
    with gr.Row():
        said = page.say(
            gr.Textbox(
                placeholder=page.text("chat_say"), show_label=False, elem_id="chat-say", scale=5, submit_btn=True
            ),
            placeholder="chat_say",
        )
        clear = page.say(gr.Button(page.text("chat_clear"), scale=0, min_width=110, elem_id="chat-clear"),
                         value="chat_clear")  # fmt: skip
    with gr.Row():
        system = page.say(gr.Textbox(label=page.text("chat_system"), elem_id="chat-system"), label="chat_system")
        temperature = page.say(gr.Slider(0, 2, value=0, step=0.05, label=page.text("chat_temperature")),
                               label="chat_temperature")  # fmt: skip
        tokens = page.say(gr.Slider(1, 2048, value=128, step=1, label=page.text("chat_tokens"), elem_id="chat-tokens"),
                          label="chat_tokens")  # fmt: skip
    with gr.Row():
        blind = page.say(gr.Checkbox(False, label=page.text("vote_blind"), elem_id="vote-blind"), label="vote_blind")
        votes = [
            page.say(gr.Button(page.text(f"vote_{vote}"), size="sm", elem_id=f"vote-{vote}"), value=f"vote_{vote}")
            for vote in ("left", "tie", "right")
        ]
    verdict = gr.Markdown(elem_id="verdict")
    loaded = gr.State((None, None))  # the words of `factory serve`, a side each

    def models(language: str, one: str | None, other: str | None) -> tuple[Any, Any]:
        say = words(language)
        runs = named(page.runs, say, ("finished", "interrupted"))
        base = [(say("chat_base"), _BASE)]
        return (
            gr.update(choices=[*base, *runs], value=one or (runs[0][1] if runs else _BASE)),
            gr.update(choices=[(say("chat_nothing"), _NOTHING), *base, *runs], value=other or _NOTHING),
        )

    page.tab.select(models, [page.language, left, right], [left, right], show_progress="hidden")

    def loading(one: str, other: str, overrides: Overrides, blind: bool, language: str) -> Iterator[tuple[Any, str]]:
        say = words(language)
        yield (None, None), say("chat_loading")
        sides = (_words(page, one, other, overrides), _words(page, other, one, overrides))
        if blind and None not in sides and random.random() < 0.5:
            sides = sides[::-1]
        page.children.keep({side for side in sides if side is not None})
        try:
            for side in filter(None, sides):
                page.children.served(side)
        except RuntimeError as error:
            yield (None, None), f"```\n{error}\n```"
            return
        yield sides, say("chat_ready")

    load.click(loading, [left, right, page.overrides, blind, page.language], [loaded, state])

    def voted(vote: str, sides: Any, talks: tuple[Talk, Talk], language: str) -> str:
        say = words(language)
        if None in sides or not all(talks):
            return say("vote_first")
        names = [" ".join(side) or _BASE for side in sides]
        page.votes.add(vote, names, [_message(turn) for turn in talks[0] if turn["role"] == "user"])
        counted = "  \n".join(f"{name}: {won} / {all_}" for name, (won, all_) in page.votes.counted(names).items())
        return say("vote_was", left=names[0], right=names[1]) + "  \n" + counted

    for vote, button in zip(("left", "tie", "right"), votes, strict=True):

        def given(sides: Any, one: Talk, other: Talk, language: str, vote: str = vote) -> str:
            return voted(vote, sides, (one, other), language)

        button.click(given, [loaded, *talks, page.language], verdict)

    def answer(
        text: str, sides: Any, one: Talk, other: Talk, system: str, temperature: float, tokens: int, language: str
    ) -> Iterator[tuple[Any, ...]]:
        if sides[0] is None:
            yield text, one, other, words(language)("chat_first")
            return
        question = {"role": "user", "content": text}
        histories = [
            [*talk, question] if side is not None else [] for talk, side in zip((one, other), sides, strict=True)
        ]
        settings = {"temperature": temperature, "max_tokens": int(tokens)}
        answers = ["", ""]
        for place, side in enumerate(sides):
            if side is None:
                continue
            asked = [*([{"role": "system", "content": system}] if system else []), *map(_message, histories[place])]
            for answers[place] in _streamed(page.children.served(side), asked, settings):
                yield "", *(_with(*pair) for pair in zip(histories, answers, strict=True)), ""

    inputs = [said, loaded, *talks, system, temperature, tokens, page.language]
    said.submit(answer, inputs, [said, *talks, state], show_progress="hidden")
    clear.click(lambda: ([], []), None, talks)


def _words(page: "Page", chosen: str | None, beside: str | None, overrides: Overrides) -> tuple[str, ...] | None:
    """What `factory serve` is given. The base is that of the run beside it; where there is none, the form's model."""
    if not chosen:
        return None
    if chosen != _BASE:
        if not page.runs.known(chosen):
            return None
        return (f"run={spelt(chosen)}",)
    of_run = next((each.overrides for each in page.runs.all() if each.folder == beside), overrides)
    return tuple(text for text in of_run if name_of(text) == "model" or text.startswith("model."))


def _message(turn: dict[str, Any]) -> dict[str, str]:
    content = turn["content"]
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return {"role": turn["role"], "content": text}


def _with(history: Talk, answer: str) -> Talk:
    return [*history, {"role": "assistant", "content": answer}] if history else []


def _streamed(server: Server, messages: list[dict[str, str]], settings: dict[str, Any]) -> Iterator[str]:
    """The answer so far, again and again."""
    model = httpx.get(f"{server.address}/v1/models").json()["data"][0]["id"]
    asked = {"model": model, "messages": messages, "stream": True, **settings}
    text = ""
    with httpx.stream("POST", f"{server.address}/v1/chat/completions", json=asked, timeout=_PATIENCE) as response:
        if response.status_code != httpx.codes.OK:
            yield response.read().decode("utf-8", "replace")
            return
        for each in response.iter_lines():
            if not each.startswith("data: ") or each == "data: [DONE]":
                continue
            choices = json.loads(each.removeprefix("data: ")).get("choices") or []
            text += (choices[0].get("delta") or {}).get("content") or "" if choices else ""
            yield text
