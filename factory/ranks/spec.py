"""What each strategy is given, and what of a model it splits among its processes. No torch."""

from typing import Any

from factory.architecture import Architecture, Shape, elements
from factory.config.settings import Strategy
from factory.plan.plan import Compiled, Dtype
from factory.quantizers.spec import holding

# what a process has only its share of
SPLIT: dict[Strategy, frozenset[str]] = {
    "none": frozenset(),
    "ddp": frozenset(),
    "zero1": frozenset({"optimizer"}),
    "zero2": frozenset({"optimizer", "gradients"}),
    "zero3": frozenset({"optimizer", "gradients", "weights"}),
    "fsdp": frozenset({"optimizer", "gradients", "weights"}),
}
ZERO: tuple[Strategy, ...] = ("zero1", "zero2", "zero3")
OFFLOADING: tuple[Strategy, ...] = ("zero2", "zero3", "fsdp")
# with these, a tensor lies in pieces that do not follow its rows and columns, or its optimizer is another
ELEMENTWISE = ("adamw", "sgd")
_LARGEST_BUCKET = 500_000_000  # elements: DeepSpeed's own default, made for models of billions
_SMALLEST_BUCKET = 65_536
_DDP_BUCKET_MIB = 25  # torch's default


def configuration(
    strategy: Strategy,
    arch: Architecture,
    trained: dict[str, Shape],
    *,
    offload: bool,
    unused: bool,
    batch_size: int,
    accumulation: int,
    processes: int,
    max_grad_norm: float | None,
    autocast: Dtype | None,
    trained_as: Dtype,
    quantized: bool,
    cuda: bool,
) -> dict[str, Any]:
    """Return the arguments of the strategy's engine.

    `unused`: some steps do not reach all that trains. `trained_as`: the type that trained tensors are held in.
    `quantized`: the base's weights stay quantized.
    """
    if strategy in ZERO:
        return (
            _deepspeed(strategy, arch, trained, offload, cuda)
            | _deepspeed_autocast(strategy, autocast)
            | {
                "train_micro_batch_size_per_gpu": batch_size,
                "gradient_accumulation_steps": accumulation,
                "train_batch_size": batch_size * accumulation * processes,
                "gradient_clipping": max_grad_norm or 0.0,
            }
        )
    given: dict[Strategy, dict[str, Any]] = {
        "none": {},
        "ddp": {
            "broadcast_buffers": False,  # they are constants, and read alike by all
            "init_sync": False,  # so are the weights: a check compares them instead
            "gradient_as_bucket_view": True,
            "bucket_cap_mb": _DDP_BUCKET_MIB,
            "find_unused_parameters": unused,
        },
        "fsdp": {
            "units": [f"{arch.layers_at}.{index}" for index in range(arch.layers)],
            "reshard_after_forward": True,
            "offload": "cpu" if offload else "none",
            # packed 4-bit weights are stored as numbers of another type, which a cast would destroy
            "param_dtype": None if quantized else autocast,
            "reduce_dtype": "float32" if autocast or trained_as != "float32" else None,
        },
    }
    return given[strategy]


def _deepspeed_autocast(strategy: Strategy, autocast: Dtype | None) -> dict[str, Any]:
    """Return DeepSpeed's section for mixed precision: without it, its engine turns an outer autocast off.

    zero3 gathers the weights of linear layers and reduces their gradients in the lower type, as DeepSpeed does by
    default. zero1 and zero2 hold whole weights, which autocast casts, and reduce in the type of the weights.
    """
    if autocast is None:
        return {}
    lower = {} if strategy == "zero3" else {"lower_precision_safe_modules": []}
    return {"torch_autocast": {"enabled": True, "dtype": autocast, **lower}}


def _deepspeed(
    strategy: Strategy, arch: Architecture, trained: dict[str, Shape], offload: bool, cuda: bool
) -> dict[str, Any]:
    """Its buckets are of a layer's size: by default they are made for a model of billions, and larger than this one."""
    layer = _largest_layer(arch)
    bucket = _bucket(min(layer, elements(trained.values())))
    zero: dict[str, Any] = {
        "stage": ZERO.index(strategy) + 1,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "overlap_comm": cuda,  # needs streams
    }
    if strategy == "zero3":
        zero |= {
            "stage3_prefetch_bucket_size": layer,
            "stage3_max_live_parameters": 2 * layer + elements(arch.outside.values()),
            "stage3_max_reuse_distance": layer,
            "stage3_param_persistence_threshold": 10 * arch.hidden,
            "sub_group_size": 4 * bucket,
            "memory_efficient_linear": False,
            "leaf_module": {"names": list(leaves(arch))},
        }
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if strategy == "zero3":
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def leaves(arch: Architecture) -> tuple[str, ...]:
    """The mixture-of-experts blocks: fetched whole, as which experts a token goes to differs from rank to rank."""
    found = (
        f"{arch.layers_at}.{index}.{name.partition('.experts.')[0]}"
        for index, block in enumerate(arch.blocks)
        for name in block.experts
        if ".experts." in name
    )
    return tuple(dict.fromkeys(found))


def reads_on_host(plan: Compiled, *, starts: bool) -> bool:
    """Whether the weights stay in the host's memory until they are split, of which each GPU takes unit by unit.

    Only `fully_shard` does so. On the GPU they are quantized, or made whole of what is, as they are read, and there an
    adapter's start is taken out of them (`starts`), which a CPU takes hours for.
    """
    splits = plan.steps.load.device == "cuda" and plan.settings.hardware.strategy == "fsdp"
    return splits and not starts and not holding(plan.settings.method.quantization, plan.steps.load.config)


def gathered(arch: Architecture) -> int:
    """Elements that fsdp and zero3 hold whole at a time: all outside of the layers, one layer, and the next one."""
    return elements(arch.outside.values()) + 2 * _largest_layer(arch)


def by_node(processes: int, nodes: int) -> tuple[str, ...]:
    """What each node does, in words."""
    each = processes // nodes
    said = []
    for node in range(nodes):
        first = node * each
        whose = f"rank {first}" if each == 1 else f"ranks {first} to {first + each - 1}"
        role = "; rank 0 writes the run's folder, to which every node needs a way" if nodes > 1 else ""
        role = role if node == 0 else "; reads the plan, the data and the model by the same paths"
        said.append(f"node {node}: {whose}{role}")
    return tuple(said)


def _largest_layer(arch: Architecture) -> int:
    """Elements."""
    return max((elements(block.tensors.values()) for block in arch.blocks), default=0)


def _bucket(elements: int) -> int:
    return min(_LARGEST_BUCKET, max(_SMALLEST_BUCKET, elements))
