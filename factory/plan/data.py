"""What goes with what in the data: which sets serve a stage, and which keys say something of them."""

from collections.abc import Iterator, Sequence

from factory.architecture.traits import TEXT_APART
from factory.config import registry
from factory.config.extras import install
from factory.config.refusal import nearest
from factory.config.words import counted
from factory.data.formats import FORMATS
from factory.data.record import MEDIA
from factory.plan import choices
from factory.plan.facts import DataFacts
from factory.plan.rule import Case, Rule

INTERLEAVED = ("interleave_under", "interleave_over")


def _no_data(case: Case) -> str | None:
    unread = case.settings.verb == "export"
    return None if case.settings.data.sources or unread else "no data set is selected"


def _path_unread(case: Case) -> str | None:
    data = case.settings.data
    used = data.path is None or any(source.path == data.path for source in data.sources.values())
    return None if used else "no selected data set reads it"


def _names_unread(case: Case) -> str | None:
    data = case.settings.data
    catalogue = any(source.origin == "catalogue" for source in data.sources.values())
    return "no catalogue is selected" if data.names and not catalogue else None


def _hub_unreachable(case: Case) -> tuple[str, str] | None:
    for name, found in case.facts.data.items():
        if found.unreachable and name in case.settings.data.sources:
            return f"data.sources.{name}.path", found.unreachable
        if found.unreachable:
            return "data.names", f"{name} is {found.path} on the hub: {found.unreachable}"
    return None


def _of_another_stage(case: Case) -> tuple[str, DataFacts] | None:
    kinds = registry.reads(case.stage_spec)
    return next(((name, data) for name, data in case.facts.data.items() if data.kind not in kinds), None)


def _columns_for_stage(case: Case) -> str | None:
    if (found := _of_another_stage(case)) is None:
        return None
    (name, data), stage, kinds = found, case.settings.stage.name, registry.reads(case.stage_spec)
    return f"{name} holds {data.kind} ({', '.join(data.columns)}), stage={stage} needs {' or '.join(kinds)}"


def _stages_that_read(case: Case) -> dict[str, str]:
    """Those that take the rows as they are, before those that sample answers of their own."""
    found = _of_another_stage(case)
    specs = {name: registry.spec("stages", name) for name in registry.names("stages")}
    names = [name for name, spec in specs.items() if found and found[1].kind in registry.reads(spec)]
    names.sort(key=lambda name: registry.samples_answers(specs[name]))
    others = f" ({', '.join(names[1:])} take them too)" if names[1:] else ""
    otherwise = _whatever_the_label(case, found) + _prompts_alone(case, found)
    return {"stages": f"set stage={names[0]}{others}, {otherwise}" if names else ""}


def _whatever_the_label(case: Case, found: tuple[str, DataFacts] | None) -> str:
    """How a file's labelled answers are trained all the same, each as an example."""
    if found is None or found[1].kind != "labelled" or registry.reads(case.stage_spec) != ("messages",):
        return ""
    name, columns = found[0], set(found[1].columns)
    plain = [other for other, each in FORMATS.items() if each.kind == "messages" and not each.lacks(columns)]
    if not plain or name not in case.settings.data.sources:  # not known beforehand, or said in a catalogue's words
        return ""
    return f"or data.sources.{name}.format={plain[0]} to train each answer whatever its label, "


def _prompts_alone(case: Case, found: tuple[str, DataFacts] | None) -> str:
    """How a file's prompts serve a stage that answers itself, whatever is said to them."""
    if found is None or "prompts" not in registry.reads(case.stage_spec):
        return ""
    name, data = found
    if name not in case.settings.data.sources or FORMATS["prompts"].lacks(set(data.columns)):
        return ""
    return f"or data.sources.{name}.format=prompts to read the prompts alone, "


def _validation_set(case: Case) -> str | None:
    name, sets = case.settings.data.validation, case.facts.data
    if name is None or not sets:
        return None
    if name not in sets:
        return f"the selected sets are {', '.join(sets)}"
    return "nothing is left to train on" if len(sets) == 1 and not choices.measured_alone(case.settings, sets) else None


def _trained_sets(case: Case) -> int:
    return len(case.facts.data) - (case.settings.data.validation in case.facts.data)


def _one_to_mix(case: Case) -> str | None:
    one = case.settings.data.mixing in INTERLEAVED and _trained_sets(case) == 1
    return "there is one set to train on" if one else None


def _stream_without_end(case: Case) -> str | None:
    wrong = case.settings.data.streaming and case.settings.stage.max_steps is None
    return "how many steps an epoch has is not known" if wrong else None


def _stream_drawn(case: Case) -> tuple[str, str] | None:
    """What is drawn by seed out of all rows needs all rows."""
    data = case.settings.data
    if not data.streaming:
        return None
    if choices.measured_alone(case.settings, case.facts.data):
        return "data.streaming", f"data.validation={data.validation} leaves no set to stream"
    if data.max_samples is not None:
        return "data.max_samples", "a stream's rows are not known before they are drawn"
    for name, found in case.facts.data.items():
        if found.max_samples is not None:
            return "data.streaming", f"data.sources.{name}.max_samples draws out of rows that are not known"
        if data.mixing == "concat" and found.weight != 1:
            return "data.streaming", f"data.sources.{name}.weight repeats rows that have gone by"
    return None


def _isolation_without_packing(case: Case) -> str | None:
    set_by_user = case.settings.data.isolate_documents != "auto"
    return "nothing is packed" if set_by_user and not choices.packing(case) else None


# what is said of conversations alone, and the value that says nothing
CHAT_KEYS = {"train_on_prompt": False, "mask_history": False, "reasoning": "template", "tools": "auto"}


def _chat_keys_on_text(case: Case) -> tuple[str, str] | None:
    data = case.settings.data
    if case.stage_spec.KIND != "text":
        return None
    named = [name for name, nothing in CHAT_KEYS.items() if getattr(data, name) != nothing]
    if named:
        return f"data.{named[0]}", "it has no meaning for plain text"
    return ("data.truncation", "plain text has no response") if data.truncation == "keep_response" else None


def _response_alone(case: Case) -> tuple[str, str] | None:
    data, kind = case.settings.data, case.stage_spec.KIND
    if kind not in ("pairs", "labelled"):
        return None
    named = [name for name in ("train_on_prompt", "mask_history") if getattr(data, name)]
    return (f"data.{named[0]}", f"of {kind} the response alone is judged") if named else None


def _judged_packed(case: Case) -> str | None:
    kind = case.stage_spec.KIND
    judged = kind in ("pairs", "labelled") and choices.packing(case)
    return f"{kind} are a row each" if judged else None


def _cut_but_packed(case: Case) -> str | None:
    text = case.stage_spec.KIND == "text"
    asked = case.settings.data.truncation in ("error", "left", "right")
    return "no document of packed text is too long" if text and choices.packing(case) and asked else None


def _prompt_and_last_answer(case: Case) -> str | None:
    data = case.settings.data
    return "data.train_on_prompt trains what this masks" if data.mask_history and data.train_on_prompt else None


def shown(case: Case) -> list[tuple[str, str]]:
    """What the sets have beside text: the set's name and the record's column."""
    return [(name, column) for name, data in case.facts.data.items() for column in data.media]


def _media_not_taken(case: Case) -> str | None:
    taken = case.traits.media
    for name, column in shown(case):
        if column in taken and case.arch.kind in TEXT_APART:
            alone = "transformers can call the language model alone"
            return f"{name} has {column}, and of a {case.arch.kind} model {alone}"
        if column not in taken:
            *others, last = ["text", *taken]
            return (
                f"{name} has {column}, and the model takes {', '.join(others)}{' and ' if others else ''}{last} alone"
            )
    return None


def _media_packed(case: Case) -> str | None:
    media = shown(case)
    return f"rows with {media[0][1]} are not packed" if media and choices.packing(case) else None


# what is said of videos alone, and the value that says nothing
VIDEO_KEYS = {"video_fps": 2.0, "video_frames": 128}


def _videos(case: Case) -> bool:
    return any(column == "videos" for _, column in shown(case))


def _video_keys_unread(case: Case) -> tuple[str, str] | None:
    if _videos(case) or any(data.peeked for data in case.facts.data.values()):
        return None
    named = [name for name, nothing in VIDEO_KEYS.items() if getattr(case.settings.data, name) != nothing]
    return (f"data.{named[0]}", "no row has a video") if named else None


def _videos_of_one_length(case: Case) -> str | None:
    wrong = "longer videos have more frames"
    one_tensor = case.arch.kind == "llava_onevision" and case.settings.data.video_fps is not None
    return wrong if one_tensor and _videos(case) else None


# what decodes them, and what the processors of videos are made with
_PACKAGES = {"videos": ("av", "torchvision"), "audios": ("av",)}
_MEDIA_EXTRAS = {"videos": "vision", "audios": "audio"}


def _lacking(case: Case) -> tuple[str, str, list[str]] | None:
    """The first set and column whose packages are not all here, and those that are not."""
    for name, column in shown(case):
        packages = [package for package in _PACKAGES.get(column, ()) if package not in case.facts.machine.packages]
        if packages:
            return name, column, packages
    return None


def _media_package(case: Case) -> str | None:
    if (found := _lacking(case)) is None:
        return None
    name, column, packages = found
    return f"{name} has {column}, which need {' and '.join(packages)}"


def _getting_media(case: Case) -> dict[str, str]:
    found = _lacking(case)
    assert found is not None
    return {"install": install(_MEDIA_EXTRAS[found[1]])}


def measured_whole(case: Case) -> Iterator[str]:
    """What bounds the rows that train bounds none of a set that is measured by itself."""
    data = case.settings.data
    if data.max_samples is not None and choices.measured_alone(case.settings, case.facts.data):
        yield (
            f"data.max_samples={data.max_samples}: data.validation={data.validation} is measured whole all the same; "
            f"data.sources.{data.validation}.max_samples takes fewer of its rows"
        )


def mended(case: Case) -> Iterator[str]:
    """Of each set the rows that are not read as they stand in the file."""
    for name, found in case.facts.data.items():
        if found.mended:
            count = f"{'at least ' if found.peeked else ''}{counted(found.mended, 'row')}"
            yield f"data.sources.{name}: line ends of Windows in cells of {count} are read as \\n, as in a text file"


def undivided(case: Case) -> Iterator[str]:
    """Of each text file that is one document of several lines: each of them may have been meant as one."""
    for name, found in case.facts.data.items():
        if found.lines > 1:
            yield (
                f"data.sources.{name}: its {found.lines:,} lines are one document, as no blank line sets texts apart; "
                "where each line is one: sed G FILE > lines.txt"
            )


_TOLD = 8  # columns that are named
_LIKE = 0.75  # of a name and one that is read, as difflib counts: `imput` and `sytem` are, `system_prompt` is not


def ignored(case: Case) -> Iterator[str]:
    """Of each set the columns that its format does not read: one that is misspelled would be lost in silence."""
    for name, found in case.facts.data.items():
        unread = sorted({*set(found.columns).difference(found.reads), *_unshown(found)})
        if found.reads and unread:
            told = ", ".join(map(repr, unread[:_TOLD]))
            more = f" and {len(unread) - _TOLD:,} more" if len(unread) > _TOLD else ""
            meant = _meant(found, unread)
            known = meant and name in case.settings.data.sources  # no key says it of a catalogue's set
            fix = f"; if that is what is meant: data.sources.{name}.columns='{{{meant}}}'" if known else ""
            yield f"data.sources.{name}: format={found.format} reads no column {told}{more}{fix}"


def _unshown(found: DataFacts) -> Iterator[str]:
    """Columns of one image, video or sound that no text has a mark for: the rows are read as texts alone."""
    for column, single in MEDIA.items():
        if single in found.columns and {column, single} <= found.reads and column not in found.media:
            yield single


def _meant(found: DataFacts, unread: Sequence[str]) -> str:
    """Those that are nearly ones that it reads, beside these."""
    free = found.reads.difference(found.columns)
    meant = {near[0]: column for column in unread if (near := nearest(column, free, _LIKE))}
    return ", ".join(f"{standard}: {column}" for standard, column in meant.items())


RULES: tuple[Rule, ...] = (
    Rule("no-data", _no_data),
    Rule("data-path-unread", _path_unread),
    Rule("data-names-unread", _names_unread),
    Rule("hub-unreachable", _hub_unreachable),
    Rule("columns-for-stage", _columns_for_stage, _stages_that_read),
    Rule("validation-set", _validation_set),
    Rule("one-set-to-mix", _one_to_mix),
    Rule("stream-without-end", _stream_without_end),
    Rule("stream-drawn", _stream_drawn),
    Rule("isolation-without-packing", _isolation_without_packing),
    Rule("chat-keys-on-text", _chat_keys_on_text),
    Rule("response-alone", _response_alone),
    Rule("judged-packed", _judged_packed),
    Rule("cut-but-packed", _cut_but_packed),
    Rule("prompt-and-last-answer", _prompt_and_last_answer),
    Rule("media-not-taken", _media_not_taken),
    Rule("media-packed", _media_packed),
    Rule("video-keys-unread", _video_keys_unread),
    Rule("videos-of-one-length", _videos_of_one_length),
    Rule("media-package", _media_package, _getting_media),
)
