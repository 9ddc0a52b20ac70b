"""What a user may say: every key with its type, range and meaning. Defaults live in conf/, and only there."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from factory.config.typed import Bytes, key

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    path: str = key("a folder with config.json and safetensors, a GGUF file, or a hub id (owner/name)")
    hub: str | None = key("the hub id that `architecture` describes; with another `path`, its config.json is read")
    package: str | None = key("an installed Python package that carries these weights as GGUF; used before the hub")
    revision: str | None = key("the hub's branch, tag or commit")
    family: str | None = key("the models that this one belongs with")
    license: str | None = key("the hub's licence tag, or the licence's name where the tag is `other`")
    gated: bool = key("whether the hub asks for a token of somebody who accepted the licence")
    template: str = key(
        "the chat template: auto (the tokenizer's own), a named one, or a file of your own (YAML, jinja)"
    )
    context_length: int | None = key("the longest sequence the model was made for, in tokens; null: config.json", low=1)
    rope_scaling: Literal["none", "linear", "dynamic", "yarn", "llama3"] = key(
        "how positions beyond the context are reached"
    )
    adapter: str | None = key("folder of a saved adapter of this base to go on from")
    new_tokens: tuple[str, ...] = key("tokens to add to the vocabulary; their rows start near the mean of the old ones")
    pad_vocabulary_to: int | None = key(
        "a resized embedding has a multiple of so many rows; null: as many as tokens", low=1
    )
    trust_remote_code: bool = key("run Python code that comes with the model")
    allow_pickle: bool = key(
        "read weights from pickle files (*.bin), which can run code, where there are no safetensors"
    )
    architecture: dict[str, Any] | None = key("the config.json numbers of `hub`, so that plan needs no network")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    origin: Literal["file", "hub", "function", "catalogue"] = key(
        "where the rows come from: files, the hub, a Python function, or LLaMA-Factory's dataset_info.json"
    )
    path: str | None = key(
        "a file or a folder (`package:` reads from the installed factory), a hub id, module:function, or a catalogue"
    )
    subset: str | None = key("the hub's name of a part of the set (its config)")
    split: str = key("the hub's split, slices too: train, train[:10%]")
    revision: str | None = key("the hub's branch, tag or commit of the set")
    format: Format = key("auto finds it from the columns")
    columns: dict[str, str] = key("the set's column for a standard one, as {instruction: question, output: answer}")
    tags: dict[str, str] = key(
        "the set's own names in a conversation, as {role_tag: speaker, content_tag: says, user_tag: customer}"
    )
    folder: str | None = key("where the paths of images, videos and sounds start; null: where the set is")
    max_samples: int | None = key("use at most so many of its rows, drawn by seed", low=1)
    weight: float = key(
        "concat: how often its rows are taken in an epoch, halves too; interleave: its share of the draws", above=0
    )
    rows: int | None = key("how many rows are published, so that plan needs no network", low=1)
    license: str | None = key("the licence tag of its page")


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    path: str | None = key("what data=file, data=function or data=llamafactory reads")
    names: tuple[str, ...] = key("the sets of a catalogue that data=llamafactory takes")
    sources: dict[str, Source] = key("the data sets, by name")
    mixing: Literal["concat", "interleave_under", "interleave_over"] = key(
        "several sets: one after the other (streaming: drawn, all alike likely, until all are used up), or drawn by "
        "weight until the first (under) or the last (over) is used up"
    )
    max_samples: int | None = key("use at most so many rows, drawn by seed", low=1)
    max_length: int | Auto = key("tokens per sequence; auto: 1024, or the model's context if shorter", low=8)
    truncation: Literal["drop", "error", "right", "left", "keep_response"] = key(
        "rows longer than max_length: drop (counted), error, or cut their end (right), their oldest turns and the "
        "question's beginning (left), or the longest prompt texts alone (keep_response)"
    )
    packing: bool | Auto = key("fill sequences with several documents; auto: on for pt, off for the others")
    isolate_documents: bool | Auto = key("packed documents do not see each other; auto: on for sft, off for pt")
    validation_fraction: float = key("share of the documents held out, at most 200", low=0, high=0.5)
    validation: str | None = key("the name of a set that is held out whole, instead of a share of the others")
    train_on_prompt: bool = key("loss on the prompt's tokens too")
    mask_history: bool = key("loss on the last answer only")
    reasoning: Literal["template", "keep", "strip"] = key(
        "what an answer's <think> block becomes: what the chat template does with it, kept in every turn, or taken away"
    )
    tools: Literal["auto", "default", "glm4", "llama3", "mistral", "qwen"] = key(
        "how tools are written; auto: the chat template's own way, or `default` where it has none"
    )
    video_fps: float | None = key(
        "frames of a video that are seen a second, at most video_frames; null: video_frames of each, evenly", above=0
    )
    video_frames: int = key("the most frames of a video that are seen", low=2)
    streaming: bool = key("prepare rows while training, block by block, instead of all before it")
    shuffle_buffer: int = key("streaming: rows in a block, which are shuffled among themselves", low=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    method: Literal["bitsandbytes", "hqq", "torchao", "quanto"] = key(
        "the library that quantizes the base when it is read"
    )
    bits: Literal[4, 8] | None = key("bits of a frozen base weight; null: not quantized")
    type: Literal["nf4", "fp4"] = key("the 4-bit data type of bitsandbytes (QLoRA, arXiv 2305.14314, section 3)")
    double_quantization: bool = key("quantize the 4-bit quantization constants too")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The keys that every method has."""

    name: str = key("the method's folder under factory/methods")
    learning_rate: float = key("what suits this method; stage.learning_rate follows it unless set", above=0)
    parts: tuple[Literal["language", "vision", "audio", "projector"], ...] = key(
        "what is trained of a model that has more than a language model; the others are frozen"
    )
    quantization: Quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The keys that every stage has."""

    name: str = key("the stage's folder under factory/stages")
    learning_rate: float = key("peak learning rate", above=0)
    num_epochs: float = key("passes over the data", above=0, high=1e9)
    max_steps: int | None = key("optimizer steps; wins over num_epochs and cycles the data", low=1)
    batch_size: int = key("sequences per rank per micro-step", low=1)
    gradient_accumulation_steps: int = key("micro-steps per optimizer step", low=1)
    optimizer: Optimizer = key("the optimizer; those with 8bit or paged in the name are of bitsandbytes")
    lr_scheduler: Literal["constant", "linear", "cosine"] = key("the learning rate after the warm-up")
    warmup_ratio: float = key("share of the steps that warm up", low=0, high=1)
    weight_decay: float = key("decoupled weight decay on matrices", low=0)
    max_grad_norm: float | None = key("clip the global gradient norm to this; null: no clipping", above=0)
    logging_steps: int = key("a metrics line every so many steps, the first and the last always", low=1)
    save_steps: int | None = key("a checkpoint every so many steps; null: only at the end, or when interrupted", low=1)
    save_total_limit: int = key("checkpoints to keep, beside the best one and what was it when they were saved", low=1)
    eval_steps: int | None = key(
        "measure the held-out rows every so many steps and after the last; null: only before and after training", low=1
    )
    load_best_model_at_end: bool = key(
        "keep the checkpoint whose held-out rows measured best, and save and evaluate that model instead of the last"
    )
    metric_for_best_model: Metric = key("what of the held-out rows is compared: the loss, or what a stage watches")
    early_stopping_patience: int | None = key(
        "stop after so many evaluations without an improvement; null: train to the end", low=1
    )
    early_stopping_threshold: float = key("an improvement is a metric better by more than this", low=0)
    on_bad_update: Literal["stop", "skip", "warn"] = key(
        "an update whose loss or gradient is not finite, or a spike: stop before it moves a weight, skip it (counted), "
        "or warn and apply it (one that is not finite is skipped all the same). What overflows in float16 is left out "
        "and counted apart, up to 32 in a row"
    )
    spike_factor: float | None = key(
        "a loss above so many times its running mean is a spike, after 10 updates; null: none is", above=1
    )
    spike_norm: float | None = key("a gradient norm above this, before clipping, is a spike; null: none is", above=0)
    max_skipped_updates: int = key("so many skipped updates in a row stop the run", low=1)
    resume: str | None = key("auto (the newest whole checkpoint of hydra.run.dir), a checkpoint's path, or null")


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    name: Literal["auto", "bf16", "fp16", "fp32", "pure_bf16"] = key(
        "bf16 and fp16: mixed, trained tensors in float32; pure_bf16: those in bfloat16 too"
    )
    float32_matmul: Literal["auto", "highest", "high", "medium"] = key(
        "how precise products of float32 matrices are (torch.set_float32_matmul_precision): highest is float32, high "
        "uses TF32 on CUDA; auto: high on CUDA, highest on a CPU and for export"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    attention: Literal[
        "auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "varlen", "per_document", "s2"
    ] = key("the attention kernel; a named one runs or is refused, auto says what it chose")
    group_size: int | Auto = key("tokens in a group of s2 attention; auto: a quarter of data.max_length", low=2)
    kernels: Literal["auto", "none", "unsloth", "liger"] = key(
        "kernels in place of the model's own, on a GPU: liger for any method; unsloth, which reads the model, for "
        "LoRA on one GPU; auto: liger where it is installed and knows the model"
    )
    activation_checkpointing: bool | Literal["auto", "selective"] = key(
        "recompute activations in the backward pass: less memory, about 30 % more time; selective keeps the matmuls'; "
        "auto: as little as fits into the machine's memory by the estimate"
    )
    recomputed_layers: int | Auto = key(
        "of how many decoder layers, the first ones, activations are recomputed: fewer take less time; auto: of all, "
        "or where activation_checkpointing=auto recomputes, of as few as fit",
        low=1,
    )
    compile: bool = key("torch.compile the decoder: minutes at the start, faster steps on a GPU")


# keys that say how one trains, and nothing of what a stage measures
OF_TRAINING = frozenset(
    (
        *(f"stage.{each.name}" for each in fields(Stage) if each.name != "name"),
        "compute.activation_checkpointing",
        "compute.recomputed_layers",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    device: Literal["auto", "cpu", "cuda"] = key("where to train; auto: a GPU if there is one")
    card: str | None = key("a card's name for planning; training needs that card here")
    compute_capability: float | None = key("the card's CUDA compute capability; null: this machine's", above=0)
    memory: Bytes | None = key(
        "the card's memory, or on a CPU a node's, as 24GB or 24GiB; null: this machine's", above=0
    )
    threads: int | None = key(
        "CPU threads of a process; null: OMP_NUM_THREADS, else the cores at hand, divided among a node's processes",
        low=1,
    )
    num_processes: int = key("processes that train together, on all nodes together; each has a GPU of its own", low=1)
    num_nodes: int = key("machines that the processes are spread over; more than one needs an outer launcher", low=1)
    strategy: Strategy = key(
        "how processes share a run: ddp (all of the model in each), fsdp (torch's fully_shard), or DeepSpeed's zero1 "
        "(optimizer split), zero2 (gradients too), zero3 (weights too)"
    )
    rank_timeout: int = key(
        "seconds that processes wait for one that does not come to a step; then it is told to hang, and the run ends",
        low=10,
    )
    offload: bool = key("keep what zero2, zero3 or fsdp split in the CPU's memory, off the GPU, between uses")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    perplexity: bool = key("perplexity of the rows that are measured, before and after")
    rows: Literal["held_out", "train"] = key("which rows are measured and answered: held-out ones, or all that train")
    stride: int | None = key(
        "a text longer than data.max_length is read in windows; of each after the first so many tokens count, the rest "
        "is context; null: all but the token that it shares with the window before",
        low=1,
    )
    samples: int = key("held-out prompts to answer before and after training", low=0, high=20)
    generation: bool = key("answer the held-out prompts, and score the answers against the rows' own")
    metrics: tuple[str, ...] = key(
        "what answers are scored by: bleu4, rouge1, rouge2, rougeL, exact_match, or a function as module:function"
    )
    temperature: float = key("of the answers that are scored; 0: greedy", low=0)
    max_new_tokens: int = key("length limit of answers", low=1)
    benchmarks: tuple[Literal["mmlu", "cmmlu", "ceval"], ...] = key(
        "multiple choice, answered by the logits of the letters"
    )
    path: str | None = key(
        "where the benchmarks' questions are: a folder in the published layout, or one set's hub id; null: the hub"
    )
    shots: int = key("solved questions before each of a benchmark", low=0)
    chat: bool = key("ask the questions of benchmarks and of harness as a conversation, by the chat template")
    harness: tuple[str, ...] = key(
        "tasks, groups and tags of lm-evaluation-harness (the package lm-eval) to ask, by their names there"
    )
    harness_path: str | None = key("a folder of task files (YAML) of your own, for evaluate.harness to name")
    harness_shots: int | None = key(
        "solved questions before each of evaluate.harness; null: as many as each task's own file says", low=0
    )
    max_samples: int | None = key(
        "at most so many questions of each of a benchmark's subjects and of each task of harness, and so many answers "
        "to score; null: all",
        low=1,
    )
    batch_size: int = key("sequences per evaluation batch", low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    tool: Literal["none", "mlflow", "tensorboard", "wandb"] = key("what runs are logged to, beside their folders")
    uri: str | None = key(
        "mlflow: the tracking address, null: none; tensorboard: the folder of its files; wandb: a server of your own"
    )
    experiment: str = key("the MLflow experiment, TensorBoard's folder for the runs, the project of wandb")
    parent_run: str | None = key("the run this one is nested under (set by sweeps); of wandb and TensorBoard its group")
    mode: Literal["online", "offline"] = key("of wandb: send while training, or keep for `wandb sync`")
    system_metrics: bool = key("log the machine's CPU, memory, disk, network and NVIDIA cards while the run goes on")
    system_metrics_seconds: float = key("between two looks at the machine", low=0.1)

    @property
    def mlflow(self) -> str | None:
        """MLflow's address, where that is what runs are logged to."""
        return self.uri if self.tool == "mlflow" else None

    @property
    def on(self) -> bool:
        return self.tool not in ("none", "mlflow") or self.mlflow is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOutput:
    format: Literal["text", "json", "yaml"] = key("how `factory plan` prints; --from-plan takes yaml and json")
    search: bool = key("show the best legal settings that fit hardware.memory, instead of one plan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    format: Literal["text", "json"] = key("how `factory preview` prints")
    rows: int = key("how many sequences are shown token by token, from the first on", low=0, high=10_000)
    html: str | None = key("a page to write beside what is printed: a path that ends in .html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    format: Literal["auto", "text", "markdown", "csv", "json", "html"] = key(
        "how `factory compare` says it; auto: by the end of compare.out's name, else text"
    )
    out: str | None = key("a file for it (.txt, .md, .csv, .json, .html); null: the standard output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    dir: str | None = key("the folder that `factory export` writes; it is not there until all of it is written")
    format: Literal["hf", "gguf", "adapter"] = key(
        "hf: whole weights as transformers reads them, an adapter merged into its base; gguf: the same as llama.cpp "
        "and Ollama read it; adapter: the adapter alone, as PEFT and vLLM read it"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "the type of the written weights, cast once, at the end; auto: that which the base is stored in, of gguf "
        "float16, of an adapter as it is"
    )
    quantization: ExportQuantization | None = key(
        "weights in fewer bits: of hf nf4, fp4, int8 (bitsandbytes), gptq, awq (the extra auto-round); of gguf q8_0, "
        "q5_1, q5_0, q4_1, q4_0"
    )
    calibration: str | None = key("gptq and awq: a text file, a line each, to set the scales by; null: built-in text")
    shard_size: Bytes = key("hf: the most that one safetensors file holds, as 5GB", above=0)
    modelfile: bool = key("gguf: write an Ollama Modelfile with the chat template beside it")
    base: str | None = key(
        "adapter: what its adapter_config.json names as its base, as owner/name; null: where the run read it"
    )
    overwrite: bool = key("replace an export that is there; the hub's files too, with export.push")
    check: bool = key("read what was written anew, before it takes its place, and compare its losses")
    push: str | None = key("the hub's repository to upload the folder to, as owner/name")
    private: bool = key("a repository that export.push makes is private")
    dry_run: bool = key("export.push: write the folder, say what would be uploaded, and upload nothing")
    register: str | None = key("the name to register the model under in MLflow, with its signature")
    run: str | None = key("the run's folder that the model card is written from (set by run=)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    resume: str | None = key("the folder of a sweep to continue: what is finished is kept, the other jobs are run")
    reuse: bool = key("a job whose plan was executed before takes that run's result instead of running again")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    name: Literal["transformers", "vllm"] = key("what writes answers in chat and serve")
    batch: int = key("answers that are written side by side", low=1)
    prefill: int = key("tokens of prompts that are read between two tokens of the answers", low=1)
    queue: int = key("requests that may wait; the next one is refused, with the time to come again", low=0)
    memory_fraction: float | None = key("share of the memory that vllm takes; null: what is needed", above=0, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    temperature: float = key("0: always the likeliest token; higher: bolder", low=0)
    top_p: float = key("draw from the fewest likeliest tokens that have this probability together", above=0, high=1)
    top_k: int | None = key("draw from so many of the likeliest tokens; null: from all", low=1)
    max_tokens: int = key("length limit of an answer; the context is another", low=1)
    seed: int | None = key("the same seed, the same answer; null: another each time", low=0, high=2**32 - 1)
    stop: tuple[str, ...] = key("texts that end an answer, which they are not part of")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    system: str | None = key("the system message that a conversation begins with")
    compare: tuple[str, ...] = key(
        "two models side by side: base (what the run started from), run (what run= names), or others as run= takes them"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    host: str = key("the address to listen on; another than this machine's own needs serve.api_key")
    port: int = key("the port to listen on; 0: any free one", low=0, high=65535)
    api_key: str | None = key("what clients must send; null: what the environment variable FACTORY_API_KEY has, if any")
    name: str | None = key("the name of the model for clients; null: that of its folder or option")
    adapters: dict[str, str] = key(
        "further adapters of the same base by the name that clients ask with: {name: folder}"
    )
    max_body: Bytes = key("the largest request, as 20MiB", above=0)
    image_hosts: tuple[str, ...] = key("hosts that images may be fetched from; none: images come within requests alone")
    grace: float = key("seconds that answers get to end in when the server is stopped", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    host: str = key("the address of the page; another than this machine's own needs board.password")
    port: int = key("the port of the page; 0: any free one", low=0, high=65535)
    password: str | None = key(
        "of who opens it; null: what the environment variable FACTORY_BOARD_PASSWORD has, if any"
    )
    share: bool = key("a public address through Gradio's tunnel; it needs board.password")
    folders: tuple[str, ...] = key("what paths that are given in the page may name: these folders and what is in them")
    open: bool = key("open the page in this machine's browser")
