"""What is true outside the settings, as values: so that `compile` does no I/O and can plan for any machine."""

from dataclasses import dataclass, field
from typing import Any, Literal

from factory.architecture import Architecture, Shape
from factory.config.refusal import Refusal
from factory.config.settings import Source
from factory.data.record import RowKind
from factory.own_base import OwnBase
from factory.plan.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    name: str
    memory_bytes: int
    compute_capability: float
    free_bytes: int | None = None  # of its memory; None where nobody says it

    @property
    def usable_bytes(self) -> int:
        return self.memory_bytes if self.free_bytes is None else self.free_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    threads: int
    available_bytes: int
    cpu_bf16: bool
    gpus: tuple[Gpu, ...]
    packages: dict[str, str]
    hub_token: bool  # whether there is one
    cpu: str = "CPU"  # its name
    memory_bytes: int | None = None  # all that there is, free or not; None: nobody says it
    hidden: str | None = None  # CUDA_VISIBLE_DEVICES, where it is set and there is no GPU
    unread: tuple[str, ...] = ()  # what nvidia-smi says of GPUs, where no Gpu can be made of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a run reached after its first step, which took `start_seconds` longer than another.

    `device`, `precision` and `kind` are as `factory.estimate.speed` names them; `work` are FLOPs of a token,
    `micro_batch` its tokens.
    """

    device: str
    precision: str
    kind: str
    work: float
    micro_batch: float
    flops_per_second: float
    start_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """A saved PEFT adapter: its adapter_config.json, and its tensors' shapes by their names in its file.

    `base` is the config.json that its base must be read with, and `context_length` what its positions reach; None:
    the base's own. `base_kind` is the model_type of what it was trained on; None: that cannot be read.
    """

    path: str
    config: dict[str, Any]
    base: dict[str, Any] | None
    context_length: int | None
    shapes: dict[str, Shape]
    tokens: dict[str, int]  # the ids that its tokenizer gives the tokens which were added to it
    fingerprint: str
    heads: dict[str, Shape] = field(default_factory=dict)  # that a stage trained beside it
    started: bool = False  # whether it has a base to itself: its start left weights that were quantized then
    base_kind: str | None = None
    own_base: OwnBase | None = None  # what is said of that beside it; None: nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """`path` is where the weights are read; `fingerprint` changes when they do."""

    source: Literal["package", "folder", "gguf", "hub"]
    path: str
    config: dict[str, Any]
    fingerprint: str
    chat_template: bool | None  # whether its tokenizer has one; None: not known before loading
    tools: bool | None = None  # whether its chat template renders tools; None: not known before loading
    walked: Architecture | None = None  # of an architecture that has no closed form: built on the meta device
    shapes: dict[str, Shape] = field(default_factory=dict)  # of the tensors on disk, where they are there
    heads: dict[str, Shape] = field(default_factory=dict)  # that a stage trained, of files beside the weights
    adapter: AdapterFacts | None = None
    tokens: int | None = None  # of its tokenizer; None: not known before loading
    revision: str | None = None  # the hub's commit where it is known, else what was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFacts:
    """A saved reward model: an adapter, or the whole weights that `config` is of; with the heads beside them.

    `base` is the fingerprint of the model that it was trained from; None where its run's plan is not there.
    """

    path: str
    adapter: AdapterFacts | None
    config: dict[str, Any] | None
    shapes: dict[str, Shape]
    heads: dict[str, Shape]
    base: str | None
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkFacts:
    """Where a benchmark's questions are; how many, and a hash of them with their shots, where they are files."""

    path: str | None
    questions: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessFacts:
    """The user's folder of task files for lm-evaluation-harness, and a hash of these."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """One data set, as it will be read. `rows` is exact unless `peeked` (of a large file the first rows were read).

    `reads` are the columns that its format reads, or would read, of the rows that
    were looked at: none where none was. `tools` says whether any of these rows carries them, `media` which of images,
    videos and audios. `unanswered`: they are prompts, and nothing tells what is to be answered.
    `lines`: of a text file that is one document, how many it has.
    `mended`: how many of these rows have line ends in their cells that are not read as they stand.
    `unreachable`: why the hub's rows cannot be read now.
    """

    source: Source
    path: str
    format: str
    kind: RowKind
    columns: tuple[str, ...]
    reads: frozenset[str] = frozenset()
    rows: int
    peeked: bool
    bytes: int
    longest_row_bytes: int
    sha256: str | None
    tools: bool = False
    media: tuple[str, ...] = ()
    unanswered: bool = False
    lines: int = 0
    mended: int = 0
    unreachable: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFacts:
    path: str
    plan_digest: str | None  # of a run that is already there
    finished: bool
    resume_digest: str | None  # of the plan that saved the checkpoint which stage.resume points at
    plan: Plan | None = None  # of the run that is there, or whose checkpoint that is; None too where it can't be read


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFacts:
    """The folder of an export: what is there now, and the free bytes beside it (None: nothing can be written there)."""

    there: Literal["nothing", "export", "file", "other"]
    free_bytes: int | None
    mounted: bool = False  # a disk, whose own folder no other can take the place of
    calibration: bool | None = None  # whether export.calibration is a file; None: none is named


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`model` is None, and a source is missing, where looking found a problem: then it is in `problems`."""

    machine: Machine
    model: ModelFacts | None
    data: dict[str, DataFacts]
    folder: FolderFacts
    problems: tuple[Refusal, ...]
    reward: RewardFacts | None = None  # what stage.reward_model names
    measured: tuple[Measured, ...] = ()  # of runs on this machine, the latest last
    unmeasured: str | None = None  # what is wrong with where that is kept
    benchmarks: dict[str, BenchmarkFacts] = field(default_factory=dict)
    harness: HarnessFacts | None = None  # what evaluate.harness_path names
    export: ExportFacts | None = None  # of the verb `export`, where its folder is named
    own: dict[str, str] = field(default_factory=dict)  # files and functions of the user's, with hashes of them
