"""`compile`: the rules first, then every choice that `auto` leaves open, then the plan and its estimate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from math import ceil

from factory import templates
from factory.architecture import Shape, architecture, elements
from factory.architecture.fit import times
from factory.config import registry
from factory.config.hub import COMMIT
from factory.config.line import name_of
from factory.config.refusal import Refusal, UserError, refusal
from factory.config.settings import GROUPS, Settings
from factory.config.values import to_tree
from factory.config.words import size
from factory.estimate import speed
from factory.estimate.memory import offloaded, on_host
from factory.estimate.tuned import Tuned
from factory.plan import bases, choices, evaluating, exporting, fitting, heads, plan, ranks, watching, writing
from factory.plan.data import ignored, measured_whole, mended, undivided
from factory.plan.diff import differences, shown
from factory.plan.estimate import Sizes, estimate
from factory.plan.facts import Facts, FolderFacts
from factory.plan.rule import Case
from factory.plan.rules import rules_for
from factory.plan.vocabulary import vocabulary
from factory.quantizers import spec as quantizers
from factory.run.folder import taken


@dataclass(frozen=True, slots=True)
class Numbers:
    """Types of the numbers of a precision (the paper, section 4.1)."""

    frozen: plan.Dtype
    trained: plan.Dtype
    autocast: plan.Dtype | None


PRECISIONS: dict[str, Numbers] = {
    "bf16": Numbers("bfloat16", "float32", "bfloat16"),
    "fp16": Numbers("float16", "float32", "float16"),
    "fp32": Numbers("float32", "float32", None),
    "pure_bf16": Numbers("bfloat16", "bfloat16", None),
}


def compile(settings: Settings, facts: Facts, *, training: bool) -> plan.Plan | list[Refusal]:
    """The plan, or every refusal. What only this machine lacks is a warning unless `training`."""
    case, found = _case(settings, facts)
    rules = [rule for rule in rules_for(settings) if rule.applies(case)]
    found = [*facts.problems, *found, *(refusal for rule in rules for refusal in rule.refusals(case))]
    refusals = [refusal for refusal in found if training or not refusal.machine]
    if refusals or not case.known:
        return refusals or found
    warnings = tuple(_warning(refusal) for refusal in found)
    made = fitting.as_little_recomputed(case, partial(_plan, warnings=warnings, training=training), training=training)
    made = replace(made, settings=_of_run(case))  # and not what was tried for it
    lacking = [*fitting.against_memory(made), *fitting.against_host(case, *offloaded(_tuned(case, made.steps)))]
    if not training:
        made, lacking = replace(made, warnings=(*made.warnings, *map(_warning, lacking))), []
    return (_against_folder(made, settings, facts) if training else []) + lacking or made


def _case(settings: Settings, facts: Facts) -> tuple[Case, list[Refusal]]:
    settings = _going_on(settings, facts)
    if facts.model is None:
        return Case(settings=settings, facts=facts, read=None, rows=None), []
    try:
        read = facts.model.walked or architecture(facts.model.config)
    except UserError as error:
        return Case(settings=settings, facts=facts, read=None, rows=None), list(error.refusals)
    # where the tokenizer is not known yet it is taken to fit the embedding: the executor checks it
    tokens = read.vocabulary if facts.model.tokens is None else facts.model.tokens
    added, multiple = len(settings.model.new_tokens), settings.model.pad_vocabulary_to
    rows = vocabulary(rows=read.vocabulary, tokens=tokens, added=added, multiple=multiple)
    return Case(settings=settings, facts=facts, read=read, rows=rows), []


def _going_on(settings: Settings, facts: Facts) -> Settings:
    """With what a saved adapter says of its shapes, where its method asks."""
    if facts.model is None or facts.model.adapter is None:
        return settings
    own = registry.hook(registry.spec("methods", settings.method.name), "going_on")
    changed = own(settings.method, facts.model.adapter.config) if own else settings.method
    return settings.model_copy(update={"method": changed})


def _model_name(settings: Settings) -> str:
    """The option, or what stands in its place: another `model.path`."""
    own = settings.model.path == settings.model.hub
    return settings.options.get("model", "") if own else settings.model.path.rstrip("/").rpartition("/")[2]


def _of_run(case: Case) -> Settings:
    """Return what a run reads: the sets of a catalogue, no place, and no group of a verb other than `export`."""
    settings = case.settings
    unread = () if settings.verb in choices.WRITES else writing.GROUPS
    options = {group: option for group, option in settings.options.items() if group not in unread}
    of_verbs = {name for name, field in Settings.model_fields.items() if name in GROUPS and not field.is_required()}
    if settings.verb == "export":
        of_verbs -= {"export"}
    return settings.model_copy(
        update={
            **dict.fromkeys(of_verbs),
            "data": settings.data.model_copy(
                update={"sources": {name: found.source for name, found in case.facts.data.items()}}
            ),
            "run_dir": "",
            "options": options | {"model": _model_name(settings)},
        }
    )


def _warning(refusal: Refusal) -> str:
    return f"[{refusal.rule}] {refusal.setting}: {refusal.wrong}; {refusal.fix}"


def _plan(case: Case, warnings: tuple[str, ...], *, training: bool) -> plan.Plan:
    settings, notes = case.settings, list[str]()
    numbers = _numbers(case, notes)
    pack, shapes = _pack(case, notes), case.trained
    steps = plan.Steps(
        load=_load(case, numbers),
        patch=_patch(case, pack.max_length, notes),
        attach=_attach(case, numbers, shapes),
        align=_align(case),
        pack=pack,
        train=_train(case, numbers),
        evaluate=_evaluate(case, pack.max_length, notes),
    )
    notes += [
        *_replaced(settings.overrides),
        *_of_method(case, numbers, shapes),
        *_of_stage(case),
        *bases.notes(case),
        *ranks.notes(case, numbers.frozen, numbers.trained),
        *watching.notes(case),
        *_licences(case),
    ]
    tuned = _tuned(case, steps)
    if case.device == "cuda" and settings.hardware.num_processes > 1:
        notes.append(f"each process holds about {size(on_host(tuned))} at most in the host's memory")
    setting, moved = offloaded(tuned)
    if moved:
        notes.append(f"{name_of(setting)}: of each process {size(moved)} are in the host's memory")
    if evaluating.nothing_measured(settings) and settings.evaluate.perplexity:
        warnings += ("data.validation_fraction=0: no rows are held out, so no perplexity is measured",)
    if settings.verb == "export":  # of the rest nothing is done
        notes, warnings = exporting.notes(case), warnings + exporting.warnings(case)
    else:
        warnings += choices.warnings(case)
    if case.facts.unmeasured is not None:
        warnings += (case.facts.unmeasured,)
    warnings += tuple(_not_pinned(case))
    return plan.Plan(
        version=plan.VERSION,
        settings=settings,
        steps=steps,
        export=exporting.planned(case) if settings.verb == "export" else None,
        estimate=_estimate(case, numbers, steps, training=training),
        notes=tuple(notes),
        warnings=warnings + bases.warnings(case),
        packages=case.facts.machine.packages,
        own=case.facts.own,
    )


def _not_pinned(case: Case) -> Iterator[str]:
    """A plan that is written for later runs names weights by a commit, or each run may have others."""
    model = case.model
    saved = case.settings.plan is not None and case.settings.plan.format == "yaml"
    if saved and model.source == "hub" and not COMMIT.fullmatch(model.revision or ""):
        yield (
            f"model.path={model.path}: not pinned, as the hub did not say which commit {model.revision} is: runs of "
            "this plan read what it is by then; set model.revision to a commit"
        )


def _replaced(overrides: Sequence[str]) -> Iterator[str]:
    """What a command line says, and says otherwise further on."""
    last = {name_of(text): text for text in overrides}
    for text in overrides:
        if (other := last[name_of(text)]) != text:
            yield f"{text} is replaced by {other}, which stands after it"


def _tuned(case: Case, steps: plan.Steps) -> Tuned:
    return Tuned(
        arch=case.arch, spec=case.method_spec, method=case.settings.method, settings=case.settings, steps=steps
    )


def _estimate(case: Case, numbers: Numbers, steps: plan.Steps, *, training: bool) -> plan.Estimate:
    machine = case.facts.machine
    judge = registry.hook(case.stage_spec, "reward_bytes")
    tuned = _tuned(case, steps)
    return estimate(
        tuned,
        _sizes(case),
        capacity=fitting.capacity(case, training=training),
        frozen=judge(case, numbers.trained, numbers.frozen) if judge else 0,
        cuda="cuda" in machine.packages,
        where=speed.device(machine, tuned, case.settings.hardware.card),
        measured=case.facts.measured,
    )


def _load(case: Case, numbers: Numbers) -> plan.Load:
    model = case.model
    return plan.Load(
        source=model.source,
        path=model.path,
        revision=model.revision,
        fingerprint=model.fingerprint,
        adapter=model.adapter and model.adapter.path,
        adapter_fingerprint=model.adapter and model.adapter.fingerprint,
        reward=case.facts.reward and case.facts.reward.path,
        reward_fingerprint=case.facts.reward and case.facts.reward.fingerprint,
        config=model.config,
        device="cuda" if case.device == "cuda" else "cpu",
        dtype=numbers.frozen,
        read_as=bases.read_as(case, numbers.frozen),
        float32_matmul=choices.float32_matmul(case),
        own_base=bases.own_base(case),
    )


def _patch(case: Case, length: int, notes: list[str]) -> plan.Patch:
    compute, rows = case.settings.compute, case.vocabulary
    (attention, why), context, recomputed = choices.attention(case), _context(case), compute.activation_checkpointing
    assert recomputed != "auto", "`fitting` decides it"
    if compute.kernels == "unsloth" and case.settings.verb == "train":
        notes.append(
            "compute.kernels=unsloth: it reads the model, attaches the adapter and chooses attention by itself; "
            "the estimate counts its layers as Liger's, which keep a little more"
        )
    elif why:
        notes.append(f"compute.attention=auto: {attention}, {why}")
    kernels, why = choices.kernels(case)
    notes += [f"compute.kernels=auto: {kernels}, {why}"] if why else []
    return plan.Patch(
        attention=attention,
        group_size=_group_size(case, length, notes) if attention == "s2" else None,
        activation_checkpointing=recomputed,
        recomputed_layers=choices.recomputed_layers(case) if recomputed else None,
        kernels=kernels,
        rope_factor=max(1.0, length / context),
        context_length=context,
        rows=rows.before,
        vocabulary=rows.after,
        new_rows=(rows.new.start, rows.new.stop),
    )


def _attach(case: Case, numbers: Numbers, shapes: dict[str, Shape]) -> plan.Attach:
    trainable = elements((shapes | case.heads).values())
    return plan.Attach(dtype=numbers.trained, trainable=trainable)


def _evaluate(case: Case, length: int, notes: list[str]) -> plan.Evaluate:
    """Without answers where the stage trains no model that writes."""
    asked, stage = case.settings.evaluate, case.settings.stage.name
    why = None if heads.writes(stage) else f"a model of stage={stage} gives scores and writes no answers"
    if why is None and choices.kernels_named(case) == "unsloth":
        why = "the model that Unsloth trains writes none; `factory chat run=FOLDER` does afterwards"
    if why is not None:
        notes.append(f"evaluate.samples: 0, as {why}")
    tasks = case.facts.harness
    return plan.Evaluate(
        stride=evaluating.stride(asked, length),
        samples=asked.samples if why is None else 0,
        benchmarks={
            name: plan.PlannedBenchmark(path=found.path, questions=found.questions, sha256=found.sha256)
            for name, found in case.facts.benchmarks.items()
        },
        harness=tasks and plan.PlannedHarness(path=tasks.path, sha256=tasks.sha256),
    )


def _of_stage(case: Case) -> list[str]:
    """Where the stage's heads start, and what it says of itself."""
    stage = case.settings.stage.name
    own = registry.hook(case.stage_spec, "notes")
    said = [] if own is None else list(own(case))
    anew = {"drawn": "starts at random", "zero": "starts at 0"}[heads.start(stage)]
    for name, shape in case.heads.items():
        found = heads.goes_on(name, case.model)
        start = anew if found is None else f"goes on from {heads.file_of(name)} in {found[0]}"
        said.append(f"{name} ({times(shape)}) {start}")
    return said


def _licences(case: Case) -> list[str]:
    """As the pages of the model and of the data sets say; of a folder or file of the user's own nobody knows."""
    model, sources = case.settings.model, case.settings.data.sources
    found = [f"{_model_name(case.settings)} {model.license}"] if model.license and model.path == model.hub else []
    found += [f"{name} {source.license}" for name, source in sources.items() if source.license]
    return [f"licences: {', '.join(found)}"] if found else []


def _of_method(case: Case, numbers: Numbers, shapes: dict[str, Shape]) -> list[str]:
    """What the plan says of the method beyond its numbers."""
    method, arch, found = case.settings.method, case.arch, list[str]()
    if arch.experts():
        train = any(".experts." in name for name in shapes)
        found.append(f"the experts {'train' if train else 'are frozen'}, {len(arch.experts())} stacked tensors")
    own = registry.hook(case.method_spec, "notes")
    found += own(method, arch) if own else ()
    return [*found, *quantizers.notes(method.quantization, case.model.config, arch, numbers.frozen)]


def _align(case: Case) -> plan.Align:
    names = [field.name for field in fields(plan.PlannedSource)]
    return plan.Align(
        sources={
            key: plan.PlannedSource(**{name: getattr(found, name) for name in names})
            for key, found in case.facts.data.items()
        }
    )


def _context(case: Case) -> int:
    context = choices.context_length(case)
    assert context is not None  # a rule
    return context


def _numbers(case: Case, notes: list[str]) -> Numbers:
    name, why = choices.precision(case)
    if why:
        notes.append(f"precision=auto: {name}, as {why}")
    if case.settings.precision.float32_matmul == "auto" and (case.device == "cuda" or name == "fp32"):
        chosen = choices.float32_matmul(case)
        how = {"high": "products of float32 use TF32 where the GPU has it", "highest": "products of float32 stay exact"}
        notes.append(f"precision.float32_matmul=auto: {chosen}, {how[chosen]}")
    numbers = PRECISIONS[name]
    trained = {} if registry.hook(case.method_spec, "copied") else case.trained
    unread = heads.unread(case.settings.stage.name, case.arch)
    if all(tensor in trained or tensor in unread for tensor, _ in case.arch.tensors()):  # read at the trained type
        numbers = Numbers(numbers.trained, numbers.trained, numbers.autocast)
    return numbers


def _pack(case: Case, notes: list[str]) -> plan.Pack:
    data, length = case.settings.data, choices.max_length(case, _context(case))
    if data.max_length == "auto":
        notes.append(f"data.max_length=auto: {length:,} tokens")
    notes += [*ignored(case), *measured_whole(case), *mended(case), *undivided(case), *_chat_notes(case)]
    return plan.Pack(
        max_length=length,
        packing=choices.packing(case),
        isolate_documents=choices.isolation(case),
        padding_free=choices.padding_free(case),
        videos="videos" in case.traits.media,
    )


def _of_videos(fps: float | None, frames: str) -> str:
    if fps is None:
        return f"data.video_fps=null: {frames} frames of each video are seen"
    return f"data.video_fps={fps:g}: {fps:g} frames a second of a video are seen, at most {frames}"


def _chat_notes(case: Case) -> list[str]:
    """What becomes of videos, of tools and of reasoning, where the rows have any or somebody asked."""
    data, found = case.settings.data, list[str]()
    if any("videos" in facts.media for facts in case.facts.data.values()):
        found.append(_of_videos(data.video_fps, f"{data.video_frames:,}"))
    if any(facts.tools for facts in case.facts.data.values()) and data.tools == "auto":
        named = case.settings.model.template
        own = case.model.tools if named == "auto" else None if templates.is_jinja(named) else True
        how = {
            True: "as the chat template writes them",
            False: "in the words of the format `default`, as the chat template has none for them",
            None: "as the chat template writes them, or in the words of the format `default` where it has none",
        }[own]
        found.append(f"data.tools=auto: tools are written {how}")
    if case.stage_spec.KIND != "text":
        what = {
            "template": "as the chat template has them, empty ones untrained",
            "keep": "in every answer, and a row where the chat template leaves one out is dropped",
            "strip": "taken away",
        }[data.reasoning]
        found.append(f"data.reasoning={data.reasoning}: <think> blocks are {what}")
    return found


def _group_size(case: Case, length: int, notes: list[str]) -> int:
    size = choices.group_size(case, length)
    if case.settings.compute.group_size == "auto":
        notes.append(f"compute.group_size=auto: {size:,} tokens, a quarter of data.max_length")
    return size


def _train(case: Case, numbers: Numbers) -> plan.Train:
    asked = to_tree(case.settings.stage)
    return plan.Train(
        own={name: value for name, value in choices.own_keys(case).items() if value != asked.get(name)},
        reference=_reference(case),
        autocast=numbers.autocast,
        threads=choices.threads(case),
        ranks=ranks.planned(case, read_as=numbers.frozen, trained_as=numbers.trained, autocast=numbers.autocast),
    )


def _reference(case: Case) -> plan.Before | None:
    """The model as it stands before its first step: of that, what a second copy is not needed for."""
    if not choices.needs_reference(case):
        return None
    trained = case.trained
    if any(name in trained for name, _ in case.arch.tensors()):
        return "weights"
    return "adapter" if case.settings.model.adapter else "base"


def _sizes(case: Case) -> Sizes:
    """Of the rows that are trained, or of a set that is measured alone. What a hub set does not say is not guessed."""
    settings, data = case.settings.data, dict(case.facts.data)
    longest = max((found.longest_row_bytes for found in data.values()), default=0)
    shows = any(found.media for found in data.values())
    if not choices.measured_alone(case.settings, data):
        data.pop(settings.validation or "", None)
    if not all(found.rows for found in data.values()):
        return Sizes(rows=plan.Range(low=1, high=None), longest_bytes=longest, bytes=None, shows=shows)
    taken = {name: min(found.rows, found.source.max_samples or found.rows) for name, found in data.items()}
    used = min(sum(taken.values()), settings.max_samples or sum(taken.values()))
    held_out = 0
    if settings.validation is None:
        held_out = plan.held_out_rows(used, settings.validation_fraction)
    share = (used - held_out) / max(1, sum(taken.values()))
    times = _times_taken(settings.mixing, taken, {name: found.source.weight for name, found in data.items()})
    total = sum(found.bytes / found.rows * taken[name] * times[name] for name, found in data.items())
    return Sizes(
        rows=plan.Range(low=1, high=max(1, ceil(share * sum(taken[name] * times[name] for name in taken)))),
        longest_bytes=longest,
        bytes=round(share * total) if all(found.bytes for found in data.values()) else None,
        shows=shows,
    )


def _times_taken(mixing: str, rows: dict[str, int], weights: dict[str, float]) -> dict[str, float]:
    """How often a row of each set is trained in an epoch, at most. Draws are random: half as many again are allowed."""
    if mixing == "concat":
        return weights
    if mixing == "interleave_under" or not rows:
        return dict.fromkeys(rows, 1.0)
    draws = 1.5 * max(rows[name] * sum(weights.values()) / weights[name] for name in rows)
    return {name: max(1.0, draws * weights[name] / sum(weights.values()) / rows[name]) for name in rows}


def _against_folder(made: plan.Plan, settings: Settings, facts: Facts) -> list[Refusal]:
    """Nothing that is already in the run's folder is overwritten or mixed with another run."""
    there, resume = facts.folder.plan_digest, settings.stage.resume
    setting, digest = f"hydra.run.dir={facts.folder.path}", made.digest()
    if facts.folder.resume_digest not in (None, digest):
        wrong = f"it was saved by the plan {facts.folder.resume_digest}, this is {digest}{_apart(facts.folder, made)}"
        return [
            refusal(
                "resume-other-run",
                f"stage.resume={resume}",
                wrong,
                because="it was saved by another run",
                fix=(
                    "set what decides the result as that run had it (see its plan.yaml), or start another run "
                    "without stage.resume"
                ),
            )
        ]
    if there is None:
        return []
    if resume is None:
        return [taken(facts.folder.path, finished=facts.folder.finished)]
    if there != digest:
        return [
            refusal(
                "folder-of-another-plan",
                setting,
                f"it holds a run of another plan ({there}, this is {digest}){_apart(facts.folder, made)}",
                because="the two would be mixed",
                fix="set the same options as that run (see its plan.yaml), or another hydra.run.dir",
            )
        ]
    if not facts.folder.finished:
        return []
    return [
        refusal(
            "run-finished",
            setting,
            "its run is finished",
            because="there is nothing to continue",
            fix="set another hydra.run.dir; its report.json has the result",
        )
    ]


def _apart(folder: FolderFacts, made: plan.Plan) -> str:
    """What decides the result and is not what the run in the folder had."""
    if folder.plan is None:
        return ""
    found = differences(folder.plan, made).decisive
    told = [f"{each.key} was {shown(each.one)}, is {shown(each.other)}" for each in found[:_APART]]
    more = [f"{len(found) - _APART} more"] if len(found) > _APART else []
    return f": {'; '.join([*told, *more])}" if told else ""


_APART = 4  # of the settings that differ, those that are named
