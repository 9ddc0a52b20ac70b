"""Configure: options, the keys of one group at a time, the estimate, the command line. All of it from the schema."""

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from factory.board import fields, file, shown
from factory.board.planned import Planned, difference
from factory.board.said import Words, words
from factory.board.tabs import form, listed
from factory.board.tabs.form import ONE_BY_ONE
from factory.config import compose, groups, line
from factory.config.line import Overrides
from factory.config.refusal import UserError
from factory.config.words import size

if TYPE_CHECKING:
    from factory.board.page import Page

_NO_RECIPE = ""
_FIT = "?fit"
_NAME = re.compile(r"[^\[\], '\"]+")  # in a list of options


def build(page: "Page") -> None:
    problems = gr.State(())  # which are shown: the form is drawn anew only where they change
    with gr.Row(elem_classes="f-configure"):
        with gr.Column(min_width=320, elem_classes="f-options"):
            _options(page)
        with gr.Column(min_width=320, elem_classes="f-side"):
            estimate = gr.HTML(elem_id="plan")
            elsewhere = gr.Column()
            command, message = _command(page)
            _files(page, message)
        with gr.Column(min_width=320, elem_classes="f-keys"):
            group = _group(page)
            keys = gr.Column()
    planned = (estimate, command, problems)
    asked = _given(page, message)
    _planned(page, planned)
    with keys:
        _form(page, group, planned)
    with elsewhere:
        _elsewhere(page, group, problems, asked)


def _planned(page: "Page", outputs: tuple[Any, ...]) -> None:
    """What follows every change of the settings."""
    gr.on(
        [page.blocks.load, page.overrides.change, page.language.change],
        partial(_seen, page),
        [page.overrides, page.language],
        list(outputs),
        show_progress="hidden",
        trigger_mode="always_last",
    )


def _seen(page: "Page", overrides: Overrides, language: str) -> tuple[Any, ...]:
    """The estimate, the command line, and what marks the problems."""
    planned = page.planner(overrides)
    marks = tuple((problem.rule, problem.setting) for problem in planned.problems)
    return shown.plan(planned, words(language)), page.command(overrides), marks


# --- what is chosen, typed and given


def _given(page: "Page", message: Any) -> Any:
    """Hears of the buttons that `shown.giving` draws; the settings that it was asked of what would make them fit."""
    box, asked = gr.Textbox(elem_id="given", elem_classes="f-unseen", show_label=False), gr.State(())

    def heard(text: str, overrides: Overrides, formed: int, asked: Overrides) -> tuple[Any, ...]:
        given = text.partition("\n")[0]
        if given == _FIT:
            return overrides, formed, "", ("asked", *overrides)
        return *_pasted(page, given, overrides, formed), asked

    form = [page.overrides, page.formed]
    box.change(heard, [box, *form, asked], [*form, message, asked], show_progress="hidden", **ONE_BY_ONE)
    return asked


def _command(page: "Page") -> tuple[Any, Any]:
    """The line, the buttons under it, and what they answer."""
    texts = {"label": "command", "info": "command_info"}
    command = page.say(gr.Textbox, texts, lines=1, max_lines=8, elem_id="command", submit_btn=True)
    with gr.Row():
        start = page.say(gr.Button, {"value": "start"}, variant="primary", elem_id="start")
        reset = page.say(gr.Button, {"value": "reset"}, elem_id="reset")
    message = gr.Markdown(elem_id="message")
    edited = _typed(page, command, message)
    outputs = [page.formed, page.overrides, command, edited, message]
    reset.click(lambda formed: (formed + 1, (), page.command(()), False, ""), page.formed, outputs, **ONE_BY_ONE)
    _starting(page, start, command, edited, message)
    return command, message


def _typed(page: "Page", command: Any, message: Any) -> Any:
    """Whether what stands in the line is not yet in the settings: as a field's, it gets there once it is left."""
    edited, form = gr.State(False), [page.overrides, page.formed]

    def differs(typed: str, overrides: Overrides) -> bool:
        return typed != page.command(overrides)

    def left(typed: str, edited: bool, overrides: Overrides, formed: int) -> Any:
        return _pasted(page, typed, overrides, formed) if edited else gr.skip()

    def settled(overrides: Overrides) -> tuple[bool, Any]:
        return False, gr.update() if page.planner(overrides).plan is None else ""

    # not `input`, which hears of no paste
    command.change(differs, [command, page.overrides], edited, show_progress="hidden", **ONE_BY_ONE)
    command.submit(partial(_pasted, page), [command, *form], [*form, message], **ONE_BY_ONE)
    command.blur(left, [command, edited, *form], [*form, message], show_progress="hidden", **ONE_BY_ONE)
    page.overrides.change(settled, page.overrides, [edited, message], show_progress="hidden", **ONE_BY_ONE)
    return edited


def _starting(page: "Page", start: Any, command: Any, edited: Any, message: Any) -> None:
    """What stands in the line is started, or refused: never what stood there before."""
    form = [page.overrides, page.formed]

    def started(typed: str, edited: bool, overrides: Overrides, formed: int, language: str) -> tuple[Any, ...]:
        if edited:
            overrides, formed, wrong = _pasted(page, typed, overrides, formed)
            if wrong:
                return overrides, formed, wrong, gr.update(), gr.update()
        return overrides, formed, *_start(page, overrides, words(language))

    given = [command, edited, *form, page.language]
    start.click(started, given, [*form, message, page.selected, page.current], **ONE_BY_ONE)


def _files(page: "Page", message: Any) -> None:
    """Settings to a file and back, and rows."""
    with gr.Row():
        save = page.say(gr.DownloadButton, {"label": "save_yaml"}, elem_id="save")
        load = page.say(gr.UploadButton, {"label": "load_yaml"}, file_types=[".yaml", ".yml"], elem_id="load")
    upload = page.say(gr.File, {"label": "upload"}, elem_id="upload", height=150)

    def saved(overrides: Overrides, request: gr.Request) -> Any:
        path = _saved(page, overrides, request.session_hash or "one")
        return gr.update(value=path, interactive=path is not None)

    form = [page.overrides, page.formed]
    anew = [page.blocks.load, page.overrides.change]
    gr.on(anew, saved, page.overrides, save, show_progress="hidden", trigger_mode="always_last")
    load.upload(_loaded, [load, *form], [*form, message], **ONE_BY_ONE)
    upload.upload(_own_rows, [upload, *form], form, **ONE_BY_ONE)


def _group(page: "Page") -> Any:
    choices = [(page.text(f"group.{name}"), name) for name in fields.FORMS]
    group = page.say(gr.Radio, {"label": "settings_of"}, choices, value=fields.FORMS[0], elem_id="group")
    page.language.change(_groups, page.language, group, show_progress="hidden")
    return group


def _options(page: "Page") -> None:
    """The groups that are chosen by option, and the recipes of one run."""
    chosen: dict[str, Any] = {}
    with gr.Row():
        dirs = page.planner.config_dirs
        recipes = [name for name in groups.options("recipe", dirs) if groups.runs_of(name, dirs) is None]
        choices = [("-", _NO_RECIPE), *recipes]
        chosen["recipe"] = page.say(gr.Dropdown, {"label": "recipe"}, choices, value=_NO_RECIPE, elem_id="recipe")
        chosen["model"] = _dropdown(page, "model")
    for names in (("method", "stage"), ("data", "precision", "hardware")):
        with gr.Row():
            chosen |= {name: _dropdown(page, name) for name in names}
    form = [page.overrides, page.formed]
    page.formed.change(_values(page, chosen), page.overrides, list(chosen.values()), show_progress="hidden")
    for name, component in chosen.items():
        component.input(_set(name), [*form, component], form, show_progress="hidden", **ONE_BY_ONE)


def _groups(language: str) -> Any:
    return gr.update(choices=[(words(language)(f"group.{name}"), name) for name in fields.FORMS])


def _line(recipe: str, config_dirs: tuple[str, ...]) -> compose.CommandLine:
    return compose.CommandLine(overrides=(f"recipe={recipe}",), config_dirs=config_dirs)


def _dropdown(page: "Page", group: str) -> Any:
    several = group == "data"
    default = page.planner(()).options[group]
    return page.say(
        gr.Dropdown,
        {"label": group},
        list(fields.options(group, page.planner.config_dirs)),
        value=[default] if several else default,
        multiselect=several,
        filterable=True,
        elem_id=f"option-{group}",
        min_width=160,
    )


def _set(group: str) -> Any:
    def chosen(overrides: Overrides, formed: int, value: Any) -> tuple[Overrides, int]:
        if value == _NO_RECIPE or value == []:
            return line.changed(overrides, group, None), formed + 1
        text = value if isinstance(value, str) else value[0] if len(value) == 1 else line.listed(value)
        return line.changed(overrides, group, text), formed + 1

    return chosen


def _values(page: "Page", chosen: dict[str, Any]) -> Any:
    """The dropdowns after the state was changed by something else."""

    def values(overrides: Overrides) -> list[Any]:
        given = {line.name_of(text): text.partition("=")[2] for text in overrides}
        options = page.planner(overrides).options or page.planner(()).options  # those of a recipe too
        found = {"recipe": _NO_RECIPE} | options | given
        return [_NAME.findall(found[name]) if name == "data" else found[name] for name in chosen]

    return values


# --- the form


def _form(page: "Page", group: Any, shown_of: tuple[Any, ...]) -> None:
    *_, problems = shown_of
    anew = [page.blocks.load, page.formed.change, group.change, problems.change, page.language.change]

    @page.render([page.overrides, page.formed, group, page.language], anew)
    def draw(overrides: Overrides, formed: int, group: str, language: str) -> None:
        planned, say = page.planner(overrides), words(language)
        if planned.tree is None:
            return
        given = {line.name_of(text) for text in overrides}
        follows = form.Follows(lambda after: _seen(page, after, language), shown_of)
        for problem in planned.of(group):
            _problem(page, planned, problem, say)
        with gr.Row(elem_classes="f-form"):
            for each in fields.fields(group, planned.tree):
                with gr.Column(min_width=260):
                    form.draw(each, say, page.overrides, is_set=each.path in given, formed=formed, follows=follows)
                    for problem in planned.of(each.path):
                        _problem(page, planned, problem, say)


def _problem(page: "Page", planned: Planned, problem: Any, say: Words) -> None:
    fixes = page.planner.fixes(planned, problem)
    buttons = "".join(
        shown.giving(difference(planned.overrides, fixed, say("leave_out")), line.command(fixed)) for fixed in fixes
    )
    gr.HTML(shown.problem(problem, say) + buttons)


def _elsewhere(page: "Page", group: Any, problems: Any, asked: Any) -> None:
    """What no field of the form that is open can show, and what would make it fit."""
    anew = [page.blocks.load, page.overrides.change, problems.change, group.change, page.language.change]

    @page.render([page.overrides, group, page.language, asked], [*anew, asked.change])
    def draw(overrides: Overrides, group: str, language: str, asked_of: Overrides) -> None:
        planned, say = page.planner(overrides), words(language)
        there = [] if planned.tree is None else [group, *(each.path for each in fields.fields(group, planned.tree))]
        beside = [problem for path in there for problem in planned.of(path)]
        for problem in planned.problems:
            if problem not in beside:
                _problem(page, planned, problem, say)
        if planned.plan is None or planned.plan.estimate.memory.fits is not False:
            return
        if asked_of == ("asked", *overrides):
            _that_fit(page, planned, say)
        else:
            gr.HTML(shown.giving(say("make_it_fit"), _FIT))


def _that_fit(page: "Page", planned: Planned, say: Words) -> None:
    found = page.planner.that_fit(planned)
    if not found:
        gr.HTML(shown.waiting(say("nothing_fits")))
    buttons = list[str]()
    for overrides, needed, fits in found:
        verdict = say("fits" if fits else "does_not_fit")
        text = f"{difference(planned.overrides, overrides, say('leave_out'))}: {size(needed)}, {verdict}"
        buttons.append(shown.giving(text, line.command(overrides)))
    gr.HTML("".join(buttons))


# --- from elsewhere


def _pasted(page: "Page", text: str, overrides: Overrides, formed: int) -> tuple[Overrides, int, str]:
    try:
        return line.read(text, page.planner.config_dirs), formed + 1, ""
    except UserError as error:
        return overrides, formed, shown.as_printed(error)


def _loaded(path: str, overrides: Overrides, formed: int) -> tuple[Overrides, int, str]:
    try:
        return file.read(Path(path).read_text("utf-8")), formed + 1, ""
    except (UserError, UnicodeDecodeError) as error:
        return overrides, formed, shown.as_printed(error)


def _own_rows(path: str, overrides: Overrides, formed: int) -> tuple[Overrides, int]:
    return line.changed(line.changed(overrides, "data", "file"), "data.path", line.spelt(path)), formed + 1


def _saved(page: "Page", overrides: Overrides, session: str) -> str | None:
    """A file to download, one a session."""
    planned = page.planner(overrides)
    if planned.tree is None:
        return None
    path = page.saved / re.sub(r"\W", "", session) / "settings.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(file.written(overrides, planned.tree), encoding="utf-8")
    return str(path)


def _start(page: "Page", overrides: Overrides, say: Words) -> tuple[str, Any, Any]:
    planned = page.planner(overrides)
    if planned.plan is None:
        return say("not_started"), gr.update(), gr.update()
    folder = page.runs.start(overrides)
    return listed.begun(page, folder, say), gr.update(selected="runs"), folder
