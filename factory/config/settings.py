"""The one declaration of every key: its type, range, choices and description. Defaults are in conf/.

A key is a field of a group below, or of the `Settings` of a method's or a stage's spec. `Settings.model_validate`
reads a composed tree or a saved plan's settings; `validate` collects every problem of a tree as refusals.
"""

import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from factory.config import keys, own, registry
from factory.config.refusal import Refusal, UserError, did_you_mean, refusal
from factory.config.suggest import unknown_key
from factory.config.values import plain

Verb = Literal["train", "evaluate", "export", "chat", "serve"]
M = TypeVar("M", bound=BaseModel)
_UNITS = {
    f"{prefix}{unit}".lower(): base**power
    for power, prefix in enumerate("KMGT", 1)
    for unit, base in (("B", 1000), ("iB", 1024))
}


def _bytes(value: Any) -> int:
    """Return 24 * 10**9 of `24GB`, 24 * 2**30 of `24GiB`. A saved plan has the number itself."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 2**10:
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value) if isinstance(value, str) else None
    if found is None or found[2].lower() not in _UNITS or float(found[1]) == 0:
        raise ValueError("not a number above 0 with a unit")
    return round(float(found[1]) * _UNITS[found[2].lower()])


Bytes = Annotated[int, BeforeValidator(_bytes), keys.AMOUNT]
# null in conf/, as Hydra sets a mapping over null, but no new key of an empty mapping
Names = Annotated[dict[str, str], BeforeValidator(lambda value: {} if value is None else value)]


class Group(BaseModel):
    """Some keys. Frozen: a variant is a `model_copy(update={...})`, or `with_keys`, which validates."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_as_number(cls, value: Any, info: Any) -> Any:
        """Pydantic takes true for 1 where a number is declared."""
        if isinstance(value, bool) and not keys.takes_flag(cls.model_fields[info.field_name].annotation):
            raise ValueError("not true or false")
        return value


Auto = Literal["auto"]
Checks = Literal["fast", "full", "none"]  # factory.execute.checks.LEVELS
Strategy = Literal["none", "ddp", "fsdp", "zero1", "zero2", "zero3"]
Optimizer = Literal[
    "adamw",
    "adamw_8bit",
    "paged_adamw",
    "paged_adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix",
    "paged_ademamix_8bit",
    "lion",
    "lion_8bit",
    "paged_lion",
    "paged_lion_8bit",
    "adafactor",
    "muon",
    "sgd",
]
ExportQuantization = Literal["nf4", "fp4", "int8", "gptq", "awq", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
Metric = Literal["loss", "rewards/accuracy", "rewards/margin", "reward"]
Format = Literal[
    "auto",
    "text",
    "alpaca",
    "messages",
    "sharegpt",
    "prompt_completion",
    "prompts",
    "pairs",
    "alpaca_pairs",
    "sharegpt_pairs",
    "messages_pairs",
    "transcripts",
    "kto",
]


class Model(Group):
    path: str = Field(description="a folder with config.json and safetensors, a GGUF file, or a hub id (owner/name)")
    hub: str | None = Field(
        description="the hub id that `architecture` describes; with another `path`, its config.json is read"
    )
    package: str | None = Field(
        description="an installed Python package that carries these weights as GGUF; used before the hub"
    )
    revision: str | None = Field(description="the hub's branch, tag or commit")
    family: str | None = Field(description="the models that this one belongs with")
    license: str | None = Field(description="the hub's licence tag, or the licence's name where the tag is `other`")
    gated: bool = Field(description="whether the hub asks for a token of somebody who accepted the licence")
    template: str = Field(
        description="the chat template: auto (the tokenizer's own), a named one, or a file of your own (YAML, jinja)"
    )
    context_length: int | None = Field(
        description="the longest sequence the model was made for, in tokens; null: config.json", ge=1
    )
    rope_scaling: Literal["none", "linear", "dynamic", "yarn", "llama3"] = Field(
        description="how positions beyond the context are reached"
    )
    adapter: str | None = Field(description="folder of a saved adapter of this base to go on from")
    new_tokens: tuple[str, ...] = Field(
        description="tokens to add to the vocabulary; their rows start near the mean of the old ones"
    )
    pad_vocabulary_to: int | None = Field(
        description="a resized embedding has a multiple of so many rows; null: as many as tokens", ge=1
    )
    trust_remote_code: bool = Field(description="run Python code that comes with the model")
    allow_pickle: bool = Field(
        description="read weights from pickle files (*.bin), which can run code, where there are no safetensors"
    )
    architecture: dict[str, Any] | None = Field(
        description="the config.json numbers of `hub`, so that plan needs no network"
    )


class Source(Group):
    origin: Literal["file", "hub", "function", "catalogue"] = Field(
        description="where the rows come from: files, the hub, a Python function, or LLaMA-Factory's dataset_info.json"
    )
    path: str | None = Field(
        description="a file or a folder (`package:` reads from the installed factory), a hub id, module:function, "
        "or a catalogue"
    )
    subset: str | None = Field(description="the hub's name of a part of the set (its config)")
    split: str = Field(description="the hub's split, slices too: train, train[:10%]")
    revision: str | None = Field(description="the hub's branch, tag or commit of the set")
    format: Format = Field(description="auto finds it from the columns")
    columns: Names = Field(
        description="the set's column for a standard one, as {instruction: question, output: answer}"
    )
    tags: Names = Field(
        description="the set's own names in a conversation, as {role_tag: speaker, content_tag: says, user_tag: "
        "customer}"
    )
    folder: str | None = Field(description="where the paths of images, videos and sounds start; null: where the set is")
    max_samples: int | None = Field(description="use at most so many of its rows, drawn by seed", ge=1)
    weight: float = Field(
        description="concat: how often its rows are taken in an epoch, halves too; interleave: its share of the draws",
        gt=0,
    )
    rows: int | None = Field(description="how many rows are published, so that plan needs no network", ge=1)
    license: str | None = Field(description="the licence tag of its page")


class Data(Group):
    path: str | None = Field(description="what data=file, data=function or data=llamafactory reads")
    names: tuple[str, ...] = Field(description="the sets of a catalogue that data=llamafactory takes")
    sources: dict[str, Source] = Field(description="the data sets, by name")
    mixing: Literal["concat", "interleave_under", "interleave_over"] = Field(
        description="several sets: one after the other (streaming: drawn, all alike likely, until all are used up), "
        "or drawn by "
        "weight until the first (under) or the last (over) is used up"
    )
    max_samples: int | None = Field(description="use at most so many rows, drawn by seed", ge=1)
    max_length: Annotated[int, Field(ge=8)] | Auto = Field(
        description="tokens per sequence; auto: 1024, or the model's context if shorter"
    )
    truncation: Literal["drop", "error", "right", "left", "keep_response"] = Field(
        description="rows longer than max_length: drop (counted), error, or cut their end (right), their oldest "
        "turns and the "
        "question's beginning (left), or the longest prompt texts alone (keep_response)"
    )
    packing: bool | Auto = Field(
        description="fill sequences with several documents; auto: on for pt, off for the others"
    )
    isolate_documents: bool | Auto = Field(
        description="packed documents do not see each other; auto: on for sft, off for pt"
    )
    validation_fraction: float = Field(description="share of the documents held out, at most 200", ge=0, le=0.5)
    validation: str | None = Field(
        description="the name of a set that is held out whole, instead of a share of the others"
    )
    train_on_prompt: bool = Field(description="loss on the prompt's tokens too")
    mask_history: bool = Field(description="loss on the last answer only")
    reasoning: Literal["template", "keep", "strip"] = Field(
        description="what an answer's <think> block becomes: what the chat template does with it, kept in every "
        "turn, or taken away"
    )
    tools: Literal["auto", "default", "glm4", "llama3", "mistral", "qwen"] = Field(
        description="how tools are written; auto: the chat template's own way, or `default` where it has none"
    )
    video_fps: float | None = Field(
        description="frames of a video that are seen a second, at most video_frames; null: video_frames of each, "
        "evenly",
        gt=0,
    )
    video_frames: int = Field(description="the most frames of a video that are seen", ge=2)
    streaming: bool = Field(description="prepare rows while training, block by block, instead of all before it")
    shuffle_buffer: int = Field(description="streaming: rows in a block, which are shuffled among themselves", ge=2)


class Quantization(Group):
    method: Literal["bitsandbytes", "hqq", "torchao", "quanto"] = Field(
        description="the library that quantizes the base when it is read"
    )
    bits: Literal[4, 8] | None = Field(description="bits of a frozen base weight; null: not quantized")
    type: Literal["nf4", "fp4"] = Field(
        description="the 4-bit data type of bitsandbytes (QLoRA, arXiv 2305.14314, section 3)"
    )
    double_quantization: bool = Field(description="quantize the 4-bit quantization constants too")


class Method(Group):
    """The keys that every method has."""

    name: str = Field(description="the method's folder under factory/methods")
    learning_rate: float = Field(description="what suits this method; stage.learning_rate follows it unless set", gt=0)
    parts: tuple[Literal["language", "vision", "audio", "projector"], ...] = Field(
        description="what is trained of a model that has more than a language model; the others are frozen"
    )
    quantization: Quantization


class Stage(Group):
    """The keys that every stage has."""

    name: str = Field(description="the stage's folder under factory/stages")
    learning_rate: float = Field(description="peak learning rate", gt=0)
    num_epochs: float = Field(description="passes over the data", gt=0, le=1e9)
    max_steps: int | None = Field(description="optimizer steps; wins over num_epochs and cycles the data", ge=1)
    batch_size: int = Field(description="sequences per rank per micro-step", ge=1)
    gradient_accumulation_steps: int = Field(description="micro-steps per optimizer step", ge=1)
    optimizer: Optimizer = Field(description="the optimizer; those with 8bit or paged in the name are of bitsandbytes")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(description="the learning rate after the warm-up")
    warmup_ratio: float = Field(description="share of the steps that warm up", ge=0, le=1)
    weight_decay: float = Field(description="decoupled weight decay on matrices", ge=0)
    max_grad_norm: float | None = Field(description="clip the global gradient norm to this; null: no clipping", gt=0)
    logging_steps: int = Field(description="a metrics line every so many steps, the first and the last always", ge=1)
    save_steps: int | None = Field(
        description="a checkpoint every so many steps; null: only at the end, or when interrupted", ge=1
    )
    save_total_limit: int = Field(
        description="checkpoints to keep, beside the best one and what was it when they were saved", ge=1
    )
    eval_steps: int | None = Field(
        description="measure the held-out rows every so many steps and after the last; null: only before and after "
        "training",
        ge=1,
    )
    load_best_model_at_end: bool = Field(
        description="keep the checkpoint whose held-out rows measured best, and save and evaluate that model "
        "instead of the last"
    )
    metric_for_best_model: Metric = Field(
        description="what of the held-out rows is compared: the loss, or what a stage watches"
    )
    early_stopping_patience: int | None = Field(
        description="stop after so many evaluations without an improvement; null: train to the end", ge=1
    )
    early_stopping_threshold: float = Field(description="an improvement is a metric better by more than this", ge=0)
    on_bad_update: Literal["stop", "skip", "warn"] = Field(
        description="an update whose loss or gradient is not finite, or a spike: stop before it moves a weight, "
        "skip it (counted), "
        "or warn and apply it (one that is not finite is skipped all the same). What overflows in float16 is left out "
        "and counted apart, up to 32 in a row"
    )
    spike_factor: float | None = Field(
        description="a loss above so many times its running mean is a spike, after 10 updates; null: none is", gt=1
    )
    spike_norm: float | None = Field(
        description="a gradient norm above this, before clipping, is a spike; null: none is", gt=0
    )
    max_skipped_updates: int = Field(description="so many skipped updates in a row stop the run", ge=1)
    resume: str | None = Field(
        description="auto (the newest whole checkpoint of hydra.run.dir), a checkpoint's path, or null"
    )


class Precision(Group):
    name: Literal["auto", "bf16", "fp16", "fp32", "pure_bf16"] = Field(
        description="bf16 and fp16: mixed, trained tensors in float32; pure_bf16: those in bfloat16 too"
    )
    float32_matmul: Literal["auto", "highest", "high", "medium"] = Field(
        description="how precise products of float32 matrices are (torch.set_float32_matmul_precision): highest is "
        "float32, high "
        "uses TF32 on CUDA; auto: high on CUDA, highest on a CPU and for export"
    )


class Compute(Group):
    attention: Literal[
        "auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "varlen", "per_document", "s2"
    ] = Field(description="the attention kernel; a named one runs or is refused, auto says what it chose")
    group_size: Annotated[int, Field(ge=2)] | Auto = Field(
        description="tokens in a group of s2 attention; auto: a quarter of data.max_length"
    )
    kernels: Literal["auto", "none", "unsloth", "liger"] = Field(
        description="kernels in place of the model's own, on a GPU: liger for any method; unsloth, which reads the "
        "model, for "
        "LoRA on one GPU; auto: liger where it is installed and knows the model"
    )
    activation_checkpointing: bool | Literal["auto", "selective"] = Field(
        description="recompute activations in the backward pass: less memory, about 30 % more time; selective keeps "
        "the matmuls'; "
        "auto: as little as fits into the machine's memory by the estimate"
    )
    recomputed_layers: Annotated[int, Field(ge=1)] | Auto = Field(
        description="of how many decoder layers, the first ones, activations are recomputed: fewer take less time; "
        "auto: of all, "
        "or where activation_checkpointing=auto recomputes, of as few as fit",
    )
    compile: bool = Field(description="torch.compile the decoder: minutes at the start, faster steps on a GPU")


class Hardware(Group):
    device: Literal["auto", "cpu", "cuda"] = Field(description="where to train; auto: a GPU if there is one")
    card: str | None = Field(description="a card's name for planning; training needs that card here")
    compute_capability: float | None = Field(
        description="the card's CUDA compute capability; null: this machine's", gt=0
    )
    memory: Bytes | None = Field(
        description="the card's memory, or on a CPU a node's, as 24GB or 24GiB; null: this machine's"
    )
    threads: int | None = Field(
        description="CPU threads of a process; null: OMP_NUM_THREADS, else the cores at hand, divided among a "
        "node's processes",
        ge=1,
    )
    num_processes: int = Field(
        description="processes that train together, on all nodes together; each has a GPU of its own", ge=1
    )
    num_nodes: int = Field(
        description="machines that the processes are spread over; more than one needs an outer launcher", ge=1
    )
    strategy: Strategy = Field(
        description="how processes share a run: ddp (all of the model in each), fsdp (torch's fully_shard), or "
        "DeepSpeed's zero1 "
        "(optimizer split), zero2 (gradients too), zero3 (weights too)"
    )
    rank_timeout: int = Field(
        description="seconds that processes wait for one that does not come to a step; then it is told to hang, and "
        "the run ends",
        ge=10,
    )
    offload: bool = Field(
        description="keep what zero2, zero3 or fsdp split in the CPU's memory, off the GPU, between uses"
    )


class Evaluate(Group):
    perplexity: bool = Field(description="perplexity of the rows that are measured, before and after")
    rows: Literal["held_out", "train"] = Field(
        description="which rows are measured and answered: held-out ones, or all that train"
    )
    stride: int | None = Field(
        description="a text longer than data.max_length is read in windows; of each after the first so many tokens "
        "count, the rest "
        "is context; null: all but the token that it shares with the window before",
        ge=1,
    )
    samples: int = Field(description="held-out prompts to answer before and after training", ge=0, le=20)
    generation: bool = Field(description="answer the held-out prompts, and score the answers against the rows' own")
    metrics: tuple[str, ...] = Field(
        description="what answers are scored by: bleu4, rouge1, rouge2, rougeL, exact_match, or a function as "
        "module:function"
    )
    temperature: float = Field(description="of the answers that are scored; 0: greedy", ge=0)
    max_new_tokens: int = Field(description="length limit of answers", ge=1)
    benchmarks: tuple[Literal["mmlu", "cmmlu", "ceval"], ...] = Field(
        description="multiple choice, answered by the logits of the letters"
    )
    path: str | None = Field(
        description="where the benchmarks' questions are: a folder in the published layout, or one set's hub id; "
        "null: the hub"
    )
    shots: int = Field(description="solved questions before each of a benchmark", ge=0)
    chat: bool = Field(
        description="ask the questions of benchmarks and of harness as a conversation, by the chat template"
    )
    harness: tuple[str, ...] = Field(
        description="tasks, groups and tags of lm-evaluation-harness (the package lm-eval) to ask, by their names there"
    )
    harness_path: str | None = Field(
        description="a folder of task files (YAML) of your own, for evaluate.harness to name"
    )
    harness_shots: int | None = Field(
        description="solved questions before each of evaluate.harness; null: as many as each task's own file says", ge=0
    )
    max_samples: int | None = Field(
        description="at most so many questions of each of a benchmark's subjects and of each task of harness, and "
        "so many answers "
        "to score; null: all",
        ge=1,
    )
    batch_size: int = Field(description="sequences per evaluation batch", ge=1)


class Tracking(Group):
    tool: Literal["none", "mlflow", "tensorboard", "wandb"] = Field(
        description="what runs are logged to, beside their folders"
    )
    uri: str | None = Field(
        description="mlflow: the tracking address, null: none; tensorboard: the folder of its files; wandb: a "
        "server of your own"
    )
    experiment: str = Field(
        description="the MLflow experiment, TensorBoard's folder for the runs, the project of wandb"
    )
    parent_run: str | None = Field(
        description="the run this one is nested under (set by sweeps); of wandb and TensorBoard its group"
    )
    mode: Literal["online", "offline"] = Field(description="of wandb: send while training, or keep for `wandb sync`")
    system_metrics: bool = Field(
        description="log the machine's CPU, memory, disk, network and NVIDIA cards while the run goes on"
    )
    system_metrics_seconds: float = Field(description="between two looks at the machine", ge=0.1)

    @property
    def mlflow(self) -> str | None:
        """MLflow's address, where that is what runs are logged to."""
        return self.uri if self.tool == "mlflow" else None

    @property
    def on(self) -> bool:
        return self.tool not in ("none", "mlflow") or self.mlflow is not None


class PlanOutput(Group):
    format: Literal["text", "json", "yaml"] = Field(
        description="how `factory plan` prints; --from-plan takes yaml and json"
    )
    search: bool = Field(description="show the best legal settings that fit hardware.memory, instead of one plan")


class Preview(Group):
    format: Literal["text", "json"] = Field(description="how `factory preview` prints")
    rows: int = Field(description="how many sequences are shown token by token, from the first on", ge=0, le=10_000)
    html: str | None = Field(description="a page to write beside what is printed: a path that ends in .html")


class Compare(Group):
    format: Literal["auto", "text", "markdown", "csv", "json", "html"] = Field(
        description="how `factory compare` says it; auto: by the end of compare.out's name, else text"
    )
    out: str | None = Field(description="a file for it (.txt, .md, .csv, .json, .html); null: the standard output")


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Field name")  # `register` is an attribute of every abstract class

    class Export(Group):
        dir: str | None = Field(
            description="the folder that `factory export` writes; it is not there until all of it is written"
        )
        format: Literal["hf", "gguf", "adapter"] = Field(
            description="hf: whole weights as transformers reads them, an adapter merged into its base; gguf: the same "
            "as llama.cpp "
            "and Ollama read it; adapter: the adapter alone, as PEFT and vLLM read it"
        )
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
            description="the type of the written weights, cast once, at the end; auto: that which the base is stored "
            "in, of gguf "
            "float16, of an adapter as it is"
        )
        quantization: ExportQuantization | None = Field(
            description="weights in fewer bits: of hf nf4, fp4, int8 (bitsandbytes), gptq, awq (the extra auto-round); "
            "of gguf q8_0, "
            "q5_1, q5_0, q4_1, q4_0"
        )
        calibration: str | None = Field(
            description="gptq and awq: a text file, a line each, to set the scales by; null: built-in text"
        )
        shard_size: Bytes = Field(description="hf: the most that one safetensors file holds, as 5GB")
        modelfile: bool = Field(description="gguf: write an Ollama Modelfile with the chat template beside it")
        base: str | None = Field(
            description="adapter: what its adapter_config.json names as its base, as owner/name; null: where the run "
            "read it"
        )
        overwrite: bool = Field(description="replace an export that is there; the hub's files too, with export.push")
        check: bool = Field(description="read what was written anew, before it takes its place, and compare its losses")
        push: str | None = Field(description="the hub's repository to upload the folder to, as owner/name")
        private: bool = Field(description="a repository that export.push makes is private")
        dry_run: bool = Field(
            description="export.push: write the folder, say what would be uploaded, and upload nothing"
        )
        register: str | None = Field(description="the name to register the model under in MLflow, with its signature")
        run: str | None = Field(description="the run's folder that the model card is written from (set by run=)")

        @property
        def folder(self) -> Path:
            assert self.dir is not None  # a rule
            return Path(self.dir)


class Sweep(Group):
    resume: str | None = Field(
        description="the folder of a sweep to continue: what is finished is kept, the other jobs are run"
    )
    reuse: bool = Field(
        description="a job whose plan was executed before takes that run's result instead of running again"
    )


class Engine(Group):
    name: Literal["transformers", "vllm"] = Field(description="what writes answers in chat and serve")
    batch: int = Field(description="answers that are written side by side", ge=1)
    prefill: int = Field(description="tokens of prompts that are read between two tokens of the answers", ge=1)
    queue: int = Field(description="requests that may wait; the next one is refused, with the time to come again", ge=0)
    memory_fraction: float | None = Field(
        description="share of the memory that vllm takes; null: what is needed", gt=0, le=1
    )


class Generation(Group):
    temperature: float = Field(description="0: always the likeliest token; higher: bolder", ge=0)
    top_p: float = Field(
        description="draw from the fewest likeliest tokens that have this probability together", gt=0, le=1
    )
    top_k: int | None = Field(description="draw from so many of the likeliest tokens; null: from all", ge=1)
    max_tokens: int = Field(description="length limit of an answer; the context is another", ge=1)
    seed: int | None = Field(description="the same seed, the same answer; null: another each time", ge=0, le=2**32 - 1)
    stop: tuple[str, ...] = Field(description="texts that end an answer, which they are not part of")


class Chat(Group):
    system: str | None = Field(description="the system message that a conversation begins with")
    compare: tuple[str, ...] = Field(
        description="two models side by side: base (what the run started from), run (what run= names), or others as "
        "run= takes them"
    )


class Serve(Group):
    host: str = Field(description="the address to listen on; another than this machine's own needs serve.api_key")
    port: int = Field(description="the port to listen on; 0: any free one", ge=0, le=65535)
    api_key: str | None = Field(
        description="what clients must send; null: what the environment variable FACTORY_API_KEY has, if any"
    )
    name: str | None = Field(description="the name of the model for clients; null: that of its folder or option")
    adapters: Names = Field(
        description="further adapters of the same base by the name that clients ask with: {name: folder}"
    )
    max_body: Bytes = Field(description="the largest request, as 20MiB")
    image_hosts: tuple[str, ...] = Field(
        description="hosts that images may be fetched from; none: images come within requests alone"
    )
    grace: float = Field(description="seconds that answers get to end in when the server is stopped", ge=0)


class Board(Group):
    host: str = Field(description="the address of the page; another than this machine's own needs board.password")
    port: int = Field(description="the port of the page; 0: any free one", ge=0, le=65535)
    password: str | None = Field(
        description="of who opens it; null: what the environment variable FACTORY_BOARD_PASSWORD has, if any"
    )
    share: bool = Field(description="a public address through Gradio's tunnel; it needs board.password")
    folders: tuple[str, ...] = Field(
        description="what paths that are given in the page may name: these folders and what is in them"
    )
    open: bool = Field(description="open the page in this machine's browser")


# keys that say how a run trains, and nothing of what a stage measures
OF_TRAINING = frozenset(
    (
        *(f"stage.{name}" for name in Stage.model_fields if name != "name"),
        "compute.activation_checkpointing",
        "compute.recomputed_layers",
    )
)


def _spec_settings(kind: registry.Part, value: Any) -> Any:
    """Validate a method's or stage's keys by the model of its name."""
    if isinstance(value, BaseModel) or not isinstance(value, dict):
        return value
    name = str(value.get("name"))
    if not own.is_code(name) and name not in registry.names(kind):
        raise ValueError(f"there is no {name} among the {kind}")
    try:
        model = registry.spec(kind, name).Settings
    except (UserError, ImportError):  # the user's file is gone: a saved plan can be read all the same
        model = _GONE[kind]
    return model.model_validate(value)


class _GoneMethod(Method, extra="allow"):
    """The keys of a method whose file is gone."""


class _GoneStage(Stage, extra="allow"):
    """The keys of a stage whose file is gone."""


_GONE: dict[registry.Part, type[Group]] = {"methods": _GoneMethod, "stages": _GoneStage}


_OF_A_VERB: Any = Field(default=None)  # None where another verb is composed, which reads none of it


class Settings(Group):
    """A run's settings. `method` and `stage` are of the class that the spec of their name has.

    `options` are the chosen options of the groups, `overrides` the words of the command line, `config_dirs` the
    absolute folders of the user's own options.
    """

    verb: Verb = "train"
    options: dict[str, str] = {}
    overrides: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()
    run_dir: str = ""
    model: Model
    data: Data
    method: Annotated[Any, BeforeValidator(lambda value: _spec_settings("methods", value))]
    stage: Annotated[Any, BeforeValidator(lambda value: _spec_settings("stages", value))]
    precision: Precision
    compute: Compute
    hardware: Hardware
    evaluate: Evaluate
    tracking: Tracking
    seed: int = Field(description="the seed of every random choice", ge=0, le=2**32 - 1)
    checks: Checks = Field(
        description="the proofs that a training run makes: fast (without a second copy of the model, and without a "
        "pass "
        "over frozen weights), full (reading the saved model again and summing up the frozen weights), none (nothing "
        "that takes a pass over a model)"
    )
    plan: PlanOutput = _OF_A_VERB
    preview: Preview = _OF_A_VERB
    compare: Compare = _OF_A_VERB
    export: Export = _OF_A_VERB
    sweep: Sweep = _OF_A_VERB
    engine: Engine = _OF_A_VERB
    generation: Generation = _OF_A_VERB
    chat: Chat = _OF_A_VERB
    serve: Serve = _OF_A_VERB
    board: Board = _OF_A_VERB


_PROVENANCE = ("options", "overrides", "run_dir", "config_dirs", "verb")
# the groups whose keys depend on the name inside them
NAMED: dict[str, registry.Part] = {"method": "methods", "stage": "stages"}
# the groups whose keys are always the same
GROUPS: dict[str, type[BaseModel]] = {
    name: kind
    for name, field in Settings.model_fields.items()
    if name not in NAMED and (kind := keys.model_of(field.annotation)) is not None
}


def validate(tree: dict[str, Any], **provenance: Any) -> Settings:
    """Return the settings of a composed tree. Raises UserError with every problem there is.

    `provenance` are the fields of `Settings` that are no keys.
    """
    problems = list[Refusal]()
    values: dict[str, Any] = {}
    tree, unknown = _known_sets(tree)
    problems += unknown
    for name in tree:
        if name not in Settings.model_fields or name in _PROVENANCE:
            problems.append(no_such_key(name, tree[name], []))
    for name, field in Settings.model_fields.items():
        if name in _PROVENANCE or (name not in tree and not field.is_required()):
            continue
        value = tree.get(name)
        if name in NAMED:
            values[name], found = _named(name, value)
        elif name in GROUPS:
            values[name], found = _group(GROUPS[name], name, value)
        else:
            values[name], found = _alone(name, value)
        problems += found
    if problems:
        raise UserError(*problems)
    return Settings(**values, **provenance)


def group(model: type[M], name: str, tree: Any) -> M:
    """Return one group's keys. Raises UserError."""
    made, problems = _group(model, name, tree)
    if problems:
        raise UserError(*problems)
    return made


def with_keys(settings: Settings, changes: dict[str, Any]) -> Settings:
    """Return the settings with some keys changed, as {"stage.batch_size": 2}. Raises UserError."""
    tree = settings.model_dump(exclude_none=False)
    provenance = {name: tree.pop(name) for name in _PROVENANCE}
    tree = {name: value for name, value in tree.items() if value is not None}
    for path, value in changes.items():
        *above, last = path.split(".")
        node = tree
        for part in above:
            node = node[part]
        node[last] = value
    return validate(tree, **provenance)


def _known_sets(tree: dict[str, Any]) -> tuple[dict[str, Any], list[Refusal]]:
    """Return the tree without sets that nothing selects: they have some keys, and neither an origin nor a path."""
    data = tree.get("data")
    sets = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(sets, dict):
        return tree, []
    bare = {
        name: own for name, own in sets.items() if isinstance(own, dict) and own and not {"origin", "path"} & own.keys()
    }
    names = data.get("names")
    known = [*(str(name) for name in sets if name not in bare), *map(str, names if isinstance(names, list) else ())]
    problems = [
        refusal(
            "unknown-set",
            f"data.sources.{name}.{key}={plain(value)}",
            f"no set {name} is selected",
            because=f"the selected sets are {', '.join(known) or 'none'}",
            fix=f"{did_you_mean(str(name), known)}select it by data=[…], or set its origin and path",
        )
        for name, own in bare.items()
        for key, value in own.items()
        if str(name) not in known
    ]
    kept = {name: own for name, own in sets.items() if name not in bare}
    return {**tree, "data": {**data, "sources": kept}}, problems


def _group(model: type[BaseModel], path: str, tree: Any) -> tuple[Any, list[Refusal]]:
    try:
        return model.model_validate(tree), []
    except ValidationError as error:
        return None, list(_refusals(model, path, error))


def _alone(name: str, value: Any) -> tuple[Any, list[Refusal]]:
    """Validate a key that is in no group."""
    try:
        Settings.__pydantic_validator__.validate_assignment(Settings.model_construct(), name, value)
    except ValidationError as error:
        return None, list(_refusals(Settings, "", error))
    return value, []


def _named(group: str, tree: Any) -> tuple[Any, list[Refusal]]:
    kind, name = NAMED[group], tree.get("name") if isinstance(tree, dict) else None
    names = registry.names(kind)
    if not isinstance(name, str) or not (name in names or own.is_code(name)):
        known = ", ".join(names)
        hint = did_you_mean(str(name), names)
        return None, [
            refusal(
                "unknown-name",
                f"{group}.name={plain(name)}",
                f"there is no such {group}",
                because=f"the {kind} are {known}, or a Python file of your own",
                fix=f"{hint}choose one by {group}=OPTION",
            )
        ]
    try:
        model = registry.spec(kind, name).Settings
    except UserError as error:
        return None, list(error.refusals)
    others = {key: having(f"{group}.{key}") for key in tree if key not in model.model_fields}
    found = [
        refusal(
            f"key-of-another-{group}",
            f"{group}.{key}={plain(tree[key])}",
            f"{group}={name} has no such key",
            because=f"{group}={' or '.join(owners)} has it",
            fix="remove it, or choose that one",
        )
        for key, owners in others.items()
        if owners
    ]
    made, problems = _group(model, group, {key: value for key, value in tree.items() if not others.get(key)})
    return made, found + problems


def _refusals(model: type[BaseModel], start: str, error: ValidationError) -> Iterator[Refusal]:
    """One for each key, whatever the branches of its type say."""
    seen = set[str]()
    missing = list[str]()
    for each in error.errors(include_url=False, include_context=False):
        path, key = _key_at(model, start, each)
        if path in seen:
            continue
        seen.add(path)
        if each["type"] == "missing":
            missing.append(path)
        elif each["type"] == "extra_forbidden":
            yield no_such_key(path, each["input"], _beside(model, start, path))
        elif key is None:
            yield _bad(path, each["input"], "a group of keys is needed here", f"set its keys, as in {path}.KEY=VALUE")
        else:
            yield _bad_value(path, each["input"], key)
    if missing:
        base = "_base@_here_" if missing[0].startswith("data.sources.") else "_base"
        others = ", ".join(path.rpartition(".")[2] for path in missing[1:])
        wrong = "the key is not there" + (f", nor {others}" if others else "")
        fix = f"restore it; a file of options of your own begins with defaults: [{base}], which has every key"
        yield _bad(missing[0], "(missing)", wrong, fix)


def _key_at(model: type[BaseModel], start: str, error: ErrorDetails) -> tuple[str, keys.Key | None]:
    """Return the path of an error's key, and the key unless it is a group. What follows are branches and items."""
    path, kind, found, is_item = start, model, None, False
    for part in error["loc"]:
        if kind is None:
            break
        path = f"{path}.{part}" if path else str(part)
        if is_item:  # the name of a mapping's item, whose keys follow
            is_item = False
            continue
        field = kind.model_fields.get(str(part))
        if field is None:  # unknown
            break
        inner, items = keys.model_of(field.annotation), keys.items_of(field.annotation)
        found = keys.Key(path, field.annotation, field) if inner is None and items is None else None
        kind, is_item = inner or items, inner is None and items is not None
    return path, found


def no_such_key(path: str, value: Any, known: list[str]) -> Refusal:
    """Return the refusal of a key that does not exist. `known` are those that could stand in its place."""
    return unknown_key(path, value, known, paths())


def _beside(model: type[BaseModel], start: str, path: str) -> list[str]:
    """Return the keys that could stand in the place of an unknown one, a mapping's item by its own name."""
    above = path.split(".")[:-1]
    known = (key.path.split(".") for key in keys.walk(model, start))
    return [
        ".".join([*above, *parts[len(above) :]])
        for parts in known
        if all(part in (own, "<name>") for part, own in zip(parts, above, strict=False))
    ]


def _bad_value(path: str, value: Any, key: keys.Key) -> Refusal:
    kind = keys.describe(key)
    hint = did_you_mean(value, keys.choices(key.kind)) if isinstance(value, str) else ""
    return _bad(path, value, f"it is not {kind}", f"{hint}set {path} to {kind} ({key.description})")


def _bad(path: str, value: Any, wrong: str, fix: str) -> Refusal:
    because = "a value that means nothing would be ignored, or bent into another"
    return refusal("bad-value", f"{path}={plain(value)}", wrong, because=because, fix=fix)


def having(path: str) -> list[str]:
    """Return the methods or stages that have this key."""
    group, _, name = path.partition(".")
    kind = NAMED[group]
    return [
        each for each in registry.names(kind) if name.split(".")[0] in registry.spec(kind, each).Settings.model_fields
    ]


@cache
def _all_keys() -> tuple[keys.Key, ...]:
    found = [key for name, model in GROUPS.items() for key in keys.walk(model, name)]
    seen = set[str]()
    for group, kind in NAMED.items():
        for name in registry.names(kind):
            for key in keys.walk(registry.spec(kind, name).Settings, group):
                if key.path not in seen:
                    seen.add(key.path)
                    found.append(key)
    alone = ("seed", "checks")
    return (
        *found,
        *(keys.Key(name, Settings.model_fields[name].annotation, Settings.model_fields[name]) for name in alone),
    )


def paths() -> list[str]:
    """The paths of all keys but those of a mapping's items."""
    return [key.path for key in all_keys() if "<name>" not in key.path]


def all_keys() -> Iterator[keys.Key]:
    """Every key that a user may set; a method's or stage's own once for all that have it."""
    yield from _all_keys()
