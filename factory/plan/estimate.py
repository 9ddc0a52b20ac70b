"""What a run will need, from the architecture alone. Parameters are exact; of memory see `factory.estimate`."""

from dataclasses import dataclass, replace
from math import ceil, prod

from factory.architecture import Architecture, Shape, elements
from factory.config import registry
from factory.estimate import flops, speed
from factory.estimate.memory import memory
from factory.estimate.tuned import Tuned
from factory.methods.lora.targets import PREFIX
from factory.optimizers.spec import products
from factory.plan.facts import Measured
from factory.plan.plan import Estimate, Parameters, Range, micro_batches, stage_keys
from factory.stages.rows import rows_per_step
from factory.stages.rows import sequences as sequences_of

# bytes of a token where tokens are fewest and where they are most; tokens that a template adds to a row
_FEWEST, _MOST, _MARKS = 6, 3, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is known of the data before the tokenizer: rows to train on, and the longest row and all in bytes.

    `shows`: rows have images, videos or sounds, whose tokens their processor alone can count.
    """

    rows: Range
    longest_bytes: int
    bytes: int | None
    shows: bool = False


def parameters(arch: Architecture, shapes: dict[str, Shape]) -> Parameters:
    of_layers = {name for block in arch.blocks for name in block.linears}
    stacks = {name for block in arch.blocks for expert in block.experts for name in (expert, expert.rpartition(".")[0])}
    known = of_layers | stacks | set(arch.part_linears)
    by_module: dict[str, int] = {}
    for name, shape in shapes.items():
        module = _module(name, arch, known)
        by_module[module] = by_module.get(module, 0) + prod(shape)
    return Parameters(total=arch.parameters(), trainable=elements(shapes.values()), trainable_by_module=by_module)


def _module(name: str, arch: Architecture, known: set[str]) -> str:
    """`…layers.3.self_attn.q_proj.lora_A.default.weight` is of `self_attn.q_proj`, the longest known name in it.

    Layers of the same name are one module, in a vision tower too: `visual.blocks.attn.qkv`.
    """
    inside = name.partition(f"{arch.layers_at}.")[2].partition(".")[2]
    words = (inside or name.removeprefix(PREFIX)).split(".")
    ends = (end for end in range(len(words), 0, -1) if ".".join(words[:end]) in known)
    own = words[: next(ends, len(words) - (words[-1] in ("weight", "bias")))]
    module = ".".join(word for word in own if not word.isdecimal())
    return module if inside else module.rpartition("model.")[2]


def estimate(
    tuned: Tuned,
    sizes: Sizes,
    *,
    capacity: int | None,
    frozen: int = 0,
    cuda: bool = False,
    where: str = "",
    measured: tuple[Measured, ...] = (),
) -> Estimate:
    """`frozen`: bytes of what is held beside the model, a reward model's tensors. `cuda`: torch was built for it.

    `where` the run would be.
    """
    steps, pack = tuned.steps, tuned.steps.pack
    settings = tuned.settings
    found = parameters(tuned.arch, tuned.everything)
    assert found.trainable == steps.attach.trainable
    length = pack.max_length
    if not pack.packing and not sizes.shows:
        length = min(length, ceil(sizes.longest_bytes / _MOST) + _MARKS)
    stage = registry.spec("stages", settings.stage.name)
    sampled, own = registry.hook(stage, "rollout_bytes"), stage_keys(tuned)
    rolled = sampled(own, tuned.arch, steps.load.dtype, length) if sampled else 0
    length += stage.new_tokens(own) if sampled else 0
    sequences, planned = sequences_of(tuned), _steps(sizes, tuned)
    rows = settings.stage.batch_size * sequences
    made = Estimate(
        parameters=found,
        memory=memory(tuned, rows=rows, length=length, capacity=capacity, frozen=frozen, rolled=rolled, cuda=cuda),
        steps=planned,
        flops_per_step=round(_flops(tuned, length, sequences, registry.hook(stage, "JUDGED", 0))),
        tokens_per_step=length * sequences * rows_per_step(tuned),
        tokens=None if sampled else _tokens(sizes, tuned, planned, length * sequences),
        speed=None,
        seconds=None,
    )
    made = replace(made, speed=speed.speed(made, tuned, where, measured))
    return replace(made, seconds=speed.seconds(made))


def _tokens(sizes: Sizes, tuned: Tuned, steps: Range, longest: int) -> Range | None:
    """Of all steps, where no row is dropped; None where neither the rows' bytes are known nor sequences are filled."""
    pack, stage = tuned.steps.pack, tuned.settings.stage
    rows, sequences = sizes.rows.high, rows_per_step(tuned)
    if pack.packing and not pack.isolate_documents and stage.max_steps is not None:
        return Range(low=stage.max_steps * sequences * longest, high=stage.max_steps * sequences * longest)
    if sizes.bytes is None or rows is None:
        return None
    taken = stage.num_epochs if stage.max_steps is None else stage.max_steps * sequences / rows
    if pack.packing and stage.max_steps is not None:  # a sequence holds several rows, up to its length
        return Range(low=stage.max_steps * sequences * longest // 2, high=stage.max_steps * sequences * longest)
    copies = 1 if pack.packing else ceil(longest / pack.max_length)
    high = ceil(taken * rows) * longest if sizes.shows else ceil(taken * copies * (sizes.bytes / _MOST + _MARKS * rows))
    if not pack.packing and steps.high is not None:
        high = min(high, steps.high * sequences * longest)
    return Range(low=min(high, ceil(taken * sizes.bytes / _FEWEST)), high=high)


def _flops(tuned: Tuned, length: int, sequences: int, judged: int) -> float:
    """Of a step, whose samples are `sequences` that are trained and `judged` that are only read.

    Answers that are rolled out are each sampled, read by the policy before, and trained several times. Each process
    makes the optimizer's own products.
    """
    own, stage = stage_keys(tuned), tuned.settings.stage
    forward = flops.forward(tuned.expanded, length)
    patch = tuned.steps.patch
    again = 0 if patch.activation_checkpointing == "selective" else patch.recomputed(tuned.expanded.layers)
    trained = flops.trained(tuned.expanded, tuned.shapes, length, again)
    a_sample = trained * sequences + forward * judged  # of a token of it
    update = products(stage.optimizer, tuned.everything, tuned.expanded) * tuned.settings.hardware.num_processes
    rows = stage.batch_size * micro_batches(tuned.settings)  # of an update
    if "rollout_batch_size" not in own:
        return a_sample * length * rows + update
    answers, epochs = own["rollout_batch_size"], own["update_epochs"]
    each = 2 * forward + epochs * a_sample
    return each * answers * length + epochs * ceil(answers / rows) * update


def _steps(sizes: Sizes, tuned: Tuned) -> Range:
    pack, stage = tuned.steps.pack, tuned.settings.stage
    if stage.max_steps is not None:
        return Range(low=stage.max_steps, high=stage.max_steps)
    low, high = sizes.rows.low, sizes.rows.high
    if pack.packing and sizes.bytes is not None and high is not None:  # at most a token a byte
        low, packed = ceil(sizes.bytes / _FEWEST / pack.max_length), ceil(sizes.bytes / pack.max_length) + 1
        high = min(packed, high) if pack.isolate_documents else packed
    elif pack.packing and not pack.isolate_documents:
        high = None  # a long document is many sequences
    sequences = rows_per_step(tuned)

    def steps(rows: int) -> int:
        return max(1, ceil(stage.num_epochs * ceil(rows / sequences)))

    return Range(low=steps(low), high=None if high is None else steps(high))
