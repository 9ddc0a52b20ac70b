"""What goes with what in the data: which sets serve a stage, and which keys say something of them."""

from collections.abc import Iterator, Sequence

from factory.architecture.traits import TEXT_APART
from factory.config import registry
from factory.config.refusal import nearest
from factory.config.words import counted
from factory.data.formats import FORMATS
from factory.data.record import MEDIA
from factory.plan import choices
from factory.plan.facts import DataFacts
from factory.plan.rule import Broken, Case, rule


@rule(
    "no-data",
    keys=("data.sources",),
    reason="there is nothing to train on",
    fix="set data=demo, or data=file data.path=FILE",
)
def no_data(case: Case) -> str | None:
    unread = case.settings.verb == "export"
    return None if case.settings.data.sources or unread else "no data set is selected"


@rule(
    "data-path-unread",
    keys=("data.path", "data.names", "data.sources"),
    reason="it would be ignored and another set trained",
    fix="add data=file",
)
def data_path_unread(case: Case) -> str | Broken | None:
    data = case.settings.data
    if data.path is not None and all(source.path != data.path for source in data.sources.values()):
        return "no selected data set reads it"
    if data.names and all(source.origin != "catalogue" for source in data.sources.values()):
        fix = "add data=llamafactory data.path=DIR/dataset_info.json, or name options of the group, as data=[a,b]"
        return Broken(key="data.names", message="no catalogue is selected", fix=fix)
    return None


@rule(
    "hub-unreachable",
    keys=("data.sources.<name>.path", "data.sources.<name>.revision", "data.names"),
    reason="its rows are not on this machine",
    fix=(
        "check the network, set HF_ENDPOINT to a mirror, or HF_DATASETS_OFFLINE=1 where the set was "
        "downloaded before; or name a file with data=file data.path=FILE"
    ),
    machine=True,
)
def hub_unreachable(case: Case) -> Broken | None:
    for name, found in case.facts.data.items():
        if found.unreachable and name in case.settings.data.sources:
            return Broken(key=f"data.sources.{name}.path", message=found.unreachable)
        if found.unreachable:
            return Broken(key="data.names", message=f"{name} is {found.path} on the hub: {found.unreachable}")
    return None


def _of_another_stage(case: Case) -> tuple[str, DataFacts] | None:
    kinds = registry.reads(case.stage_spec)
    return next(((name, data) for name, data in case.facts.data.items() if data.kind not in kinds), None)


@rule(
    "columns-for-stage",
    keys=("data.sources", "stage.name"),
    reason=(
        "pt reads plain text, sft conversations, dpo, orpo and rm pairs of answers, kto answers with a label,"
        " ppo and grpo prompts, by themselves or of conversations"
    ),
    fix="map columns with data.sources.NAME.columns, or set another stage",
)
def columns_for_stage(case: Case) -> Broken | None:
    if (found := _of_another_stage(case)) is None:
        return None
    (name, data), stage, kinds = found, case.settings.stage.name, registry.reads(case.stage_spec)
    wrong = f"{name} holds {data.kind} ({', '.join(data.columns)}), stage={stage} needs {' or '.join(kinds)}"
    return Broken(message=wrong, fix=f"{_stages_that_read(case)}or map columns with data.sources.NAME.columns")


def _stages_that_read(case: Case) -> str:
    """Those that take the rows as they are, before those that sample answers of their own."""
    found = _of_another_stage(case)
    specs = {name: registry.spec("stages", name) for name in registry.names("stages")}
    names = [name for name, spec in specs.items() if found and found[1].kind in registry.reads(spec)]
    names.sort(key=lambda name: registry.samples_answers(specs[name]))
    others = f" ({', '.join(names[1:])} take them too)" if names[1:] else ""
    otherwise = _whatever_the_label(case, found) + _prompts_alone(case, found)
    return f"set stage={names[0]}{others}, {otherwise}" if names else ""


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


@rule(
    "validation-set",
    keys=("data.validation", "data.sources"),
    reason=(
        "one of the selected sets is held out whole, the others are trained (with `factory evaluate` it may "
        "be the only one)"
    ),
    fix="name one of several selected sets, as data=[alpaca,file] data.validation=file",
)
def validation_set(case: Case) -> str | None:
    name, sets = case.settings.data.validation, case.facts.data
    if name is None or not sets:
        return None
    if name not in sets:
        return f"the selected sets are {', '.join(sets)}"
    return "nothing is left to train on" if len(sets) == 1 and not choices.measured_alone(case.settings, sets) else None


@rule(
    "streaming",
    keys=(
        "data.streaming",
        "data.max_samples",
        "data.mixing",
        "data.sources",
        "data.validation",
        "stage.name",
        "stage.max_steps",
        "hardware.num_processes",
    ),
    reason="a stream is read once, in order, a block at a time",
    fix="remove it, or set data.streaming=false",
)
def streaming(case: Case) -> str | Broken | None:
    """Name what needs all rows, or their number, before they are trained."""
    data, stage = case.settings.data, case.settings.stage.name
    if not data.streaming:
        return None
    if case.settings.stage.max_steps is None:
        reason = "the learning rate's schedule and the end of the run follow from the number of steps"
        fix = "set stage.max_steps, or data.streaming=false"
        return Broken(message="how many steps an epoch has is not known", reason=reason, fix=fix)
    if case.settings.hardware.num_processes > 1:
        return "each of several processes would read all of the stream"
    if registry.samples_answers(case.stage_spec):
        return f"which prompts stage={stage} would answer is not known before they are read"
    if choices.needs_reference(case):
        return f"the loss of stage={stage} reads the reference's log-probabilities, taken before training"
    if choices.measured_alone(case.settings, case.facts.data):
        return f"data.validation={data.validation} leaves no set to stream"
    if data.max_samples is not None:
        return Broken(key="data.max_samples", message="a stream's rows are not known before they are drawn")
    for name, found in case.facts.data.items():
        if found.source.max_samples is not None:
            return f"data.sources.{name}.max_samples draws out of rows that are not known"
        if data.mixing == "concat" and found.source.weight != 1:
            return f"data.sources.{name}.weight repeats rows that have gone by"
    return None


@rule(
    "rows-packed",
    keys=("data.packing", "data.sources", "stage.name"),
    reason="each answer is judged by itself, and stands in a row of its own",
    fix="set data.packing=false",
)
def rows_packed(case: Case) -> str | Broken | None:
    kind, media = case.stage_spec.KIND, shown(case)
    if not choices.packing(case):
        return None
    if kind in ("pairs", "labelled"):
        return f"{kind} are a row each"
    if registry.samples_answers(case.stage_spec):
        return "prompts are answered one by one"
    if not media:
        return None
    reason = "the places of an image's tokens in time, height and width are counted within one row"
    return Broken(message=f"rows with {media[0][1]} are not packed", reason=reason)


def shown(case: Case) -> list[tuple[str, str]]:
    """What the sets have beside text: the set's name and the record's column."""
    return [(name, column) for name, data in case.facts.data.items() for column in data.media]


@rule(
    "media-not-taken",
    keys=("data.sources", "data.video_fps", "model.path", "stage.name"),
    reason="an answer about what the model neither sees nor hears would teach it to guess",
    fix=(
        "choose a model that does (`factory models vision`, `factory models audio`), or another data set; where the "
        "texts say enough, take these columns and their marks <image>, <video> and <audio> out of the rows"
    ),
)
def media_not_taken(case: Case) -> str | Broken | None:
    kind, taken, stage = case.arch.kind, case.traits.media, case.settings.stage.name
    for name, column in shown(case):
        if column in taken and kind in TEXT_APART:
            return f"{name} has {column}, and transformers can call only the language model of a {kind} model"
        if column not in taken:
            *others, last = ["text", *taken]
            return f"{name} has {column}, and the model takes only {', '.join(others)}{' and ' if others else ''}{last}"
        if stage == "kto" or registry.samples_answers(case.stage_spec):
            reason = "the stage pairs each prompt with answers other than the row's own"
            return Broken(
                message=f"{name} has {column}, and stage={stage} reads only text",
                reason=reason,
                fix="use a set of text only, or stage=dpo with pairs",
            )
        if column == "videos" and kind == "llava_onevision" and case.settings.data.video_fps is not None:
            return Broken(
                key="data.video_fps",
                message="longer videos have more frames",
                reason="LLaVA-OneVision's class takes all videos of a batch as one tensor of equally many frames",
                fix="set data.video_fps=null, which takes data.video_frames of each",
            )
    return None


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
