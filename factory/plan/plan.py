"""The plan: everything that a run will do, as typed values, a file and a digest."""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from factory.config.parsed import json_of, yaml_of
from factory.config.refusal import UserError, refuse
from factory.config.settings import Data, Settings, Source, Stage, Verb
from factory.config.values import plain, record, to_tree

_plan_broken = partial(refuse, "plan-broken", because="a plan is one", fix="compile again with the same overrides")

VERSION = 21
# what decides the result of the settings that no step resolves; a bad update is told in the report, whatever is done
# about it
_DECISIVE: dict[str, tuple[str, ...]] = {
    "model": ("template", "trust_remote_code", "allow_pickle", "rope_scaling", "new_tokens"),
    "data": (
        *("mixing", "max_samples", "validation", "validation_fraction", "streaming", "shuffle_buffer"),
        *("truncation", "train_on_prompt", "mask_history", "reasoning", "tools"),
    ),
    "stage": (
        *("name", "learning_rate", "num_epochs", "max_steps", "batch_size", "gradient_accumulation_steps"),
        *("optimizer", "lr_scheduler", "warmup_ratio", "weight_decay", "max_grad_norm"),
        *("eval_steps", "load_best_model_at_end", "metric_for_best_model"),
        *("early_stopping_patience", "early_stopping_threshold", "spike_factor", "spike_norm"),
    ),
    "compute": ("compile",),
    "evaluate": (
        *("perplexity", "rows", "generation", "metrics", "temperature", "max_new_tokens", "shots", "chat"),
        *("harness", "harness_shots", "max_samples", "batch_size"),
    ),
}
_OF_SOURCE = ("origin", "subset", "split", "revision", "columns", "tags", "folder", "max_samples", "weight")
_OF_VIDEOS = ("video_fps", "video_frames")
# of `patch`: computed twice or once, an activation is the same
_RECOMPUTATION = ("activation_checkpointing", "recomputed_layers")
# of `export`: all but the places
_OF_WHAT_IS_WRITTEN = ("format", "quantization", "shard_size", "base")
Dtype = Literal["float32", "bfloat16", "float16"]
Before = Literal["base", "adapter", "weights"]  # the model before its first step: of an adapter, or none
Recomputed = bool | Literal["selective"]  # which activations: all, or all but the products of matrices
BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}  # of a number


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Where the weights come from and the type that they are held in. `config` is the model's config.json.

    `own_base` is of an adapter whose start was taken out of its base before that was quantized: `rebuilt` as the run
    had it, of weights that are read as `read_as`, or `published` weights in its place; None: it has none.
    """

    source: Literal["package", "folder", "gguf", "hub"]
    path: str
    revision: str | None
    fingerprint: str
    adapter: str | None  # a saved one, whose weights the new one starts from
    adapter_fingerprint: str | None
    reward: str | None  # a saved reward model that scores answers
    reward_fingerprint: str | None
    config: dict[str, Any]
    device: Literal["cpu", "cuda"]
    dtype: Dtype
    read_as: Dtype
    float32_matmul: Literal["highest", "high", "medium"]  # precision of products of float32 matrices
    own_base: Literal["rebuilt", "published"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    attention: str
    group_size: int | None  # of s2 attention
    activation_checkpointing: Recomputed
    recomputed_layers: int | None  # the first of the decoder's; None: all
    kernels: str
    rope_factor: float
    context_length: int
    rows: int  # of the embedding as it is read
    vocabulary: int  # rows of the embedding as it is trained
    new_rows: tuple[int, int]  # the ids that nobody has trained yet: from, up to

    def recomputed(self, layers: int) -> int:
        """How many of a decoder's layers are, the first ones."""
        return min(self.recomputed_layers or layers, layers) if self.activation_checkpointing else 0

    @property
    def reach(self) -> int:
        """What the model reads, in tokens: a prompt and its answer. Unstretched positions have the factor 1."""
        return round(self.context_length * self.rope_factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """`trainable` counts elements, and the executor holds the model to it."""

    dtype: Dtype
    trainable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSource:
    """One data set. `sha256` is of its content; None where only reading it would tell (the hub)."""

    path: str
    format: str
    bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource(PlannedSource):
    """A data set with its settings."""

    asked: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Align:
    sources: dict[str, PlannedSource]


VALIDATION_ROWS = 200  # at most, whatever data.validation_fraction says


def held_out_rows(rows: int, fraction: float) -> int:
    """Return how many of the rows are held out: the fraction, at least one where any can be spared."""
    if fraction == 0 or rows < 2:
        return 0
    return min(VALIDATION_ROWS, max(1, round(rows * fraction)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    max_length: int
    packing: bool
    isolate_documents: bool
    padding_free: bool  # rows of a micro-batch stand one after another, isolated by their lengths
    videos: bool  # whether the model takes them


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The processes that train together. `by_node` says in words what each node does.

    `sharded_loading`: each reads its slices of the weights' files only.
    `configuration` is what the engine is given, whole: DeepSpeed's own, or the arguments of torch's ddp or fully_shard.
    """

    sharded_loading: bool
    configuration: dict[str, Any]
    by_node: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    own: dict[str, Any]  # the stage's own keys that were left open
    reference: Before | None  # what the loss measures the change from, if anything
    autocast: Dtype | None
    threads: int
    ranks: Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBenchmark:
    """`path`: a folder, a hub set's id, or None for the authors' own on the hub.

    `sha256` is of the questions and their shots, and `questions` how many there are; None where only the hub knows.
    """

    path: str | None
    questions: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedHarness:
    """The user's folder of task files for lm-evaluation-harness, and a hash of these."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """`stride`: tokens of a window after the first that count. `samples`: 0 of a model that writes no answers."""

    stride: int
    samples: int
    benchmarks: dict[str, PlannedBenchmark]
    harness: PlannedHarness | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """`dtype` is of the weights that are not quantized; None: of an adapter, as it is. `bytes` the folder will take.

    `scores`: whether it is a reward model.
    """

    dtype: Dtype | None
    scores: bool
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What compile resolved of each step; settings are read from the plan's."""

    load: Load
    patch: Patch
    attach: Attach
    align: Align
    pack: Pack
    train: Train
    evaluate: Evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    total: int
    trainable: int
    trainable_by_module: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes. `total` is the largest of `instants`, the moments of a training step with all that is there then, and
    of reading where weights are whole then, to be quantized or split.

    The parts before `instants` are each what it takes at its own largest; they are not all there at one moment.
    `constants` are those of the weights that quantized ones are scaled by; `activations` what is kept for the backward
    pass; `logits` those of a chunk with their slopes; `buffers` what a forward or a backward pass has beside; `slack`
    what glibc's heap cannot use again; `runtime` is Python with its libraries on a CPU (both 0 on a GPU); `capacity` is
    what is free there; of a GPU that is not here None, where nobody says what it has, and so is `fits`. `uncalibrated`
    names what of the run was never measured.
    """

    weights: int
    constants: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    slack: int
    runtime: int
    instants: dict[str, int]
    total: int
    capacity: int | None
    fits: bool | None
    uncalibrated: tuple[str, ...] = ()


# of these, what a person is shown beside `total`
MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "slack", "runtime")

KNOWN_LATER = "(known after pack)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A number that only the tokenizer can tell: exact when low equals high. `high` is None where nobody knows it."""

    low: int
    high: int | None

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:,}"
        return f"{self.low:,} {'or more' if self.high is None else f'to {self.high:,}'} {KNOWN_LATER}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Two numbers between which one is expected to lie."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed(Span):
    """Tokens a second after the first step, which takes `start_seconds` longer."""

    start_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`flops_per_step` and `tokens_per_step` are those of sequences that are as long as they may be.

    `tokens` are those of all steps, None where nobody knows how long the rows are; `speed` and `seconds`, of all steps,
    are None where no run was ever measured on the device.
    """

    parameters: Parameters
    memory: Memory
    steps: Range
    flops_per_step: int
    tokens_per_step: int
    tokens: Range | None
    speed: Speed | None
    seconds: Span | None


class Compiled(Protocol):
    """Settings, with the steps that they resolve to: a plan, or what is estimated before there is one."""

    @property
    def settings(self) -> Settings: ...

    @property
    def steps(self) -> Steps: ...


def drawn_in_order(data: Data) -> list[str]:
    """Return the sources of rows to train, where which of them comes first changes the draws; else none."""
    drawn = [name for name in data.sources if name != data.validation]
    return drawn if len(drawn) > 1 else []


def use_of(data: Data, name: str) -> str:
    """Return how one of the sources is used, as `, held out whole`; empty where all of it is taken once."""
    source, held = data.sources[name], name == data.validation
    found = (
        "held out whole" if held else "",
        f"weight {source.weight:g}" if source.weight != 1 and not held else "",
        "" if source.max_samples is None else f"at most {source.max_samples:,} rows",
    )
    return "".join(f", {text}" for text in found if text)


def stage_keys(plan: Compiled) -> dict[str, Any]:
    """Return the stage's own keys, with values in the place of those that were left open."""
    own = {name: to_tree(value) for name, value in plan.settings.stage if name not in Stage.model_fields}
    return own | plan.steps.train.own


def micro_batches(settings: Settings) -> int:
    """Return how many micro-batches an optimizer step has, on all ranks together."""
    return settings.stage.gradient_accumulation_steps * settings.hardware.num_processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    version: int
    settings: Settings
    steps: Steps
    export: Export | None  # of the verb `export`
    estimate: Estimate
    notes: tuple[str, ...]  # what `auto` chose, and why
    warnings: tuple[str, ...]
    packages: dict[str, str]
    own: dict[str, str]  # files of the user's by their paths, and functions by their names, with hashes

    @property
    def verb(self) -> Verb:
        return self.settings.verb

    @property
    def options(self) -> dict[str, str]:
        """The chosen option of each group."""
        return self.settings.options

    @property
    def overrides(self) -> tuple[str, ...]:
        return self.settings.overrides

    @property
    def config_dirs(self) -> tuple[str, ...]:
        return self.settings.config_dirs

    @property
    def sources(self) -> dict[str, DataSource]:
        """The data sets, in their order."""
        asked = self.settings.data.sources
        return {
            name: DataSource(**{each.name: getattr(found, each.name) for each in fields(found)}, asked=asked[name])
            for name, found in self.steps.align.sources.items()
        }

    @property
    def exported(self) -> Export:
        """Return what compile resolved of an export."""
        assert self.export is not None
        return self.export

    @property
    def method(self) -> str:
        """What trains, as it was asked for: of `method=dora` the code is lora's. A file of the user's by its path."""
        own: str = self.settings.method.name
        return own if own in self.own else self.options.get("method", own)

    def with_settings(self, **changes: Any) -> "Plan":
        """Return the plan with other settings, as `tracking`: with none that a step was resolved from."""
        return replace(self, settings=self.settings.model_copy(update=changes))

    def digest(self) -> str:
        """A hash of what changes the result: not of places, of tracking, of logging, or of the estimate.

        Nor of which process computes what: a step's micro-batches are the same, however many ranks share them. Nor of
        what is computed twice: losses are equal, in their last bits at most they are not.
        """
        text = json.dumps(list(self.decisive().values()), sort_keys=True)  # a config may say Infinity: Mamba's do
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def takes_as(self, other: "Plan") -> bool:
        """Whether it has the other's result, of the same computations: what one takes, the other does."""
        ours, theirs = self.steps.patch, other.steps.patch
        recomputed = all(getattr(ours, name) == getattr(theirs, name) for name in _RECOMPUTATION)
        return recomputed and self.digest() == other.digest()

    def decisive(self) -> dict[str, Any]:
        """What the digest is a hash of."""
        steps = to_tree(self.steps)
        del steps["load"]["path"], steps["load"]["adapter"], steps["load"]["reward"]
        del steps["train"]["threads"], steps["train"]["ranks"], steps["train"]["own"]
        for name in _RECOMPUTATION:
            del steps["patch"][name]
        if order := drawn_in_order(self.settings.data):  # the digest sorts keys
            steps["align"]["order"] = order
        for source in (*steps["align"]["sources"].values(), *steps["evaluate"]["benchmarks"].values()):
            if source["sha256"] is not None:  # else its name is all that tells it from another
                del source["path"]
        if steps["evaluate"]["harness"] is not None:
            del steps["evaluate"]["harness"]["path"]
        if steps["load"]["source"] in ("folder", "gguf"):
            steps["load"]["revision"] = None
        settings = {
            group: {name: to_tree(getattr(getattr(self.settings, group), name)) for name in names}
            for group, names in _DECISIVE.items()
        }
        data = self.settings.data
        settings["data"] |= {name: getattr(data, name) for name in _OF_VIDEOS if self.steps.pack.videos}
        settings["data"]["sources"] = {
            key: {name: getattr(source, name) for name in _OF_SOURCE} for key, source in data.sources.items()
        }
        settings["method"] = to_tree(self.settings.method)
        own = stage_keys(self)
        settings["stage"] |= {name: own[name] for name in own if name != "reward_model"}
        settings["stage"]["gradient_accumulation_steps"] = micro_batches(self.settings)
        found = {"version": self.version, "verb": self.verb, "seed": self.settings.seed}
        found |= {"settings": settings, "steps": steps, "own": self.own}
        if self.export is None:
            return found
        asked = self.settings.export
        written = {name: getattr(asked, name) for name in _OF_WHAT_IS_WRITTEN}
        written["modelfile"] = asked.modelfile and asked.format == "gguf"
        return found | {"export": {**written, "dtype": self.export.dtype, "scores": self.export.scores}}


def tree_of(plan: Plan) -> dict[str, Any]:
    """The plan as plan.yaml has it."""
    tree = to_tree(plan)
    del tree["settings"]["run_dir"]
    tree["settings"] = {name: part for name, part in tree["settings"].items() if part is not None}
    return tree


def to_yaml(plan: Plan) -> str:
    return yaml.safe_dump({"digest": plan.digest(), **tree_of(plan)}, sort_keys=False, allow_unicode=True, width=110)


def to_json(plan: Plan) -> dict[str, Any]:
    """The JSON of the contracts: steps as a list, a number of steps where it is exact."""
    tree = tree_of(plan)
    steps = tree["estimate"]["steps"]
    if steps["low"] == steps["high"]:
        tree["estimate"]["steps"] = steps["low"]
    else:
        tree["estimate"]["steps"] = {**steps, "note": "known after pack"}
    steps = [{"name": name, **step} for name, step in tree["steps"].items()]
    steps.insert(2, {"name": "quantize"})  # which resolves nothing
    tree["steps"] = steps
    return {"digest": plan.digest(), **tree}


_BESIDE = ("changes", "search")  # what the verb `plan` prints in JSON beside a plan


def _of_json(tree: Any) -> Any:
    """The tree of plan.yaml, of what `to_json` made of it; anything else as it is."""
    steps = tree.get("steps") if isinstance(tree, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) and "name" in step for step in steps):
        return tree
    named = {
        str(step["name"]): {key: value for key, value in step.items() if key != "name"}
        for step in steps
        if step["name"] != "quantize"
    }
    tree = {key: value for key, value in tree.items() if key not in _BESIDE} | {"steps": named}
    estimate = tree.get("estimate")
    if isinstance(estimate, dict) and "steps" in estimate:
        tree["estimate"] = {**estimate, "steps": _range(estimate["steps"])}
    return tree


def _range(steps: Any) -> Any:
    if isinstance(steps, dict):
        return {key: value for key, value in steps.items() if key != "note"}
    return {"low": steps, "high": steps}


def _parsed(content: bytes) -> Any:
    """A plan file, or what plan.format=json printed. Raises ValueError.

    JSON is read as such: YAML takes its 2e-05 for a text.
    """
    if content.lstrip().startswith(b"{"):
        with suppress(ValueError):
            return _of_json(json_of(content))
    return yaml_of(content)


PLAN_EXAMPLE = "--from-plan outputs/DATE/TIME/plan.yaml"


def read_plan(path: Path, *, setting: str = "", example: str = PLAN_EXAMPLE) -> Plan:
    """A plan, written as YAML or as JSON, checked against the types and its own digest. Raises UserError.

    `example` is how one is named.
    """
    setting = setting or f"--from-plan {path}"
    try:
        tree = _parsed(path.read_bytes())
    except OSError as error:
        raise refuse(
            "plan-missing",
            setting,
            f"it cannot be read ({error.strerror})",
            because="there is no plan to read",
            fix=f"name one, as in {example}",
        ) from None
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise _plan_broken(setting, "it is not a YAML mapping")
    if tree.get("version") != VERSION:
        raise _other_version(setting, tree)
    digest = tree.pop("digest", None)
    try:
        plan = record(Plan, tree)
    except ValueError as error:
        raise _plan_broken(setting, f"it is not a plan ({'; '.join(str(error).splitlines()[1:3])})") from None
    try:
        own = plan.digest()
    except (ValueError, TypeError):
        raise _plan_broken(setting, "it holds what no plan does, as an endless number or a date") from None
    if own != digest:
        raise refuse(
            "plan-edited",
            setting,
            f"its digest is {plain(digest)}, its content has {own}",
            because="a plan that was changed by hand was never checked by the rules",
            fix="compile again with the same overrides (they stand in the plan)",
        )
    return plan


def _other_version(setting: str, tree: dict[str, Any]) -> UserError:
    """With the command that compiles it again."""
    from factory.config.line import again  # which reads plans

    version, settings = tree.get("version"), tree.get("settings")
    settings = settings if isinstance(settings, dict) else tree  # which had them itself
    wrong = f"it has version {version}, this factory reads version {VERSION}"
    overrides, folders = (
        list(map(str, found)) if isinstance(found, list) else []
        for found in (settings.get("overrides"), settings.get("config_dirs"))
    )
    return refuse(
        "plan-version",
        setting,
        wrong,
        because="its keys may mean something else now",
        fix=f"compile again: {again(str(settings.get('verb', 'train')), overrides, folders)}",
    )
