"""Several processes: what of a run can be shared among them, and how it is planned."""

from collections.abc import Iterator

from packaging.version import Version

from factory.architecture import FAMILIES
from factory.config import registry
from factory.config.words import counted
from factory.plan import choices
from factory.plan.facts import Machine
from factory.plan.plan import Dtype, Ranks
from factory.plan.rule import Broken, Case, rule
from factory.quantizers.spec import stays_quantized
from factory.ranks import spec

_SPLITTING = ("fsdp", *spec.ZERO)
_READS_BY_PLAN = "5.23"  # transformers' version from which `DistributedConfig` has an `fsdp_plan`


def planned(case: Case, *, read_as: Dtype, trained_as: Dtype, autocast: Dtype | None) -> Ranks:
    hardware, stage, arch = case.settings.hardware, case.settings.stage, case.expanded
    shapes = case.trained | case.heads
    return Ranks(
        sharded_loading="weights" in spec.SPLIT[hardware.strategy] and _reads_whole(case, read_as, trained_as) is None,
        configuration=spec.configuration(
            hardware.strategy,
            arch,
            shapes,
            offload=hardware.offload,
            unused=any(name.startswith(tuple(arch.parts.values())) for name in shapes) if arch.parts else False,
            batch_size=stage.batch_size,
            accumulation=stage.gradient_accumulation_steps,
            processes=hardware.num_processes,
            max_grad_norm=stage.max_grad_norm,
            autocast=autocast,
            trained_as=trained_as,
            quantized=stays_quantized(case.settings.method.quantization, case.model.config),
            cuda=case.device == "cuda",
        ),
        by_node=spec.by_node(hardware.num_processes, hardware.num_nodes),
    )


def notes(case: Case, read_as: Dtype, trained_as: Dtype) -> list[str]:
    hardware = case.settings.hardware
    if hardware.strategy == "none":
        return []
    found = [
        f"memory is that of one of {hardware.num_processes} processes; what {hardware.strategy} splits is divided, "
        "which is not calibrated by measurements"
    ]
    if case.device == "cpu":
        found.append(f"each process has {counted(choices.threads(case), 'thread')}")
    if "weights" in spec.SPLIT[hardware.strategy] and (reason := _reads_whole(case, read_as, trained_as)) is not None:
        found.append(f"{hardware.strategy}: each process reads the whole weights before they are split, as {reason}")
    return found


def _reads_whole(case: Case, read_as: Dtype, trained_as: Dtype) -> str | None:
    """Return why a rank cannot read its share of the weights only; None where it can."""
    model, method, kind = case.settings.model, case.settings.method, case.model.config["model_type"]
    attaches = registry.hook(case.method_spec, "attaches_to_shares")
    trains_base = any(name in case.trained for name, _ in case.expanded.tensors())
    packages = case.facts.machine.packages
    transformers = packages.get("transformers", _READS_BY_PLAN)
    reasons = {
        "there is one process": case.settings.hardware.num_processes == 1,
        "quantized ones are packed as they are read": stays_quantized(method.quantization, case.model.config),
        "a saved adapter is read onto them": model.adapter is not None,
        "the vocabulary has new rows": len(case.vocabulary.new) > 0 or case.vocabulary.after != case.vocabulary.before,
        f"no closed form describes {kind}": model.trust_remote_code or kind not in FAMILIES,
        "pickled files cannot be read in slices": model.allow_pickle,
        f"method.name={method.name} reads them when it is attached": attaches is None or not attaches(method),
        f"some are trained in {trained_as} and read in {read_as}": trains_base and read_as != trained_as,
        f"transformers {transformers} reads none by a plan ({_READS_BY_PLAN} does)": (
            Version(transformers) < Version(_READS_BY_PLAN)
        ),
        # whether a card is there or not
        "transformers reads them to the device that torch is built for (its build for CPUs has none)": (
            case.device == "cpu" and not packages.get("torch", "+cpu").endswith("+cpu")
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@rule(
    "processes",
    keys=("hardware.num_processes", "hardware.num_nodes", "hardware.strategy"),
    reason="without a strategy nothing is shared",
    fix="set hardware.strategy=ddp, or fsdp where the model does not fit one process",
)
def processes(case: Case) -> Iterator[Broken]:
    hardware = case.settings.hardware
    if _uneven(case):
        yield Broken(
            key="hardware.num_nodes",
            message=f"{hardware.num_processes} processes cannot be spread evenly over them",
            reason="num_processes counts the processes of all nodes together, as many on each",
            fix="set hardware.num_processes to a multiple of hardware.num_nodes",
        )
    if hardware.num_processes > 1 and hardware.strategy == "none":
        yield Broken(message=f"{hardware.num_processes} processes would each train a model of their own")


def _uneven(case: Case) -> bool:
    return case.settings.hardware.num_processes % case.settings.hardware.num_nodes > 0


@rule(
    "nodes-need-launcher",
    keys=("hardware.num_nodes",),
    reason="what starts processes on several machines (torchrun, Slurm, Ray) is outside of Factory",
    fix=(
        "write the plan with `factory plan … plan.format=yaml > plan.yaml`, and let each node run `torchrun …"
        " -m factory train --from-plan plan.yaml hydra.run.dir=…` (docs/scaling.md)"
    ),
    machine=True,
)
def nodes_need_launcher(case: Case) -> str | None:
    several = case.settings.hardware.num_nodes > 1 and not _uneven(case)
    return "processes are started on this machine only" if several else None


@rule(
    "ranks-beyond-gpus",
    keys=("hardware.num_processes", "hardware.device", "hardware.num_nodes"),
    reason="each process trains on a GPU of its own",
    fix="set hardware.num_processes to the number of GPUs, or hardware=cpu",
    machine=True,
)
def ranks_beyond_gpus(case: Case) -> str | None:
    hardware = case.settings.hardware
    alone = case.device == "cuda" and hardware.num_nodes == 1
    return beyond_gpus(hardware.num_processes, case.facts.machine) if alone else None


def beyond_gpus(processes: int, machine: Machine) -> str | None:
    """What is wrong with so many processes on this machine's GPUs, if anything."""
    gpus = machine.gpus
    if processes <= max(1, len(gpus)):
        return None
    return f"there {'is one GPU' if len(gpus) == 1 else f'are {len(gpus)} GPUs'} here"


@rule(
    "offload-useless",
    keys=("hardware.offload", "hardware.strategy", "hardware.device"),
    reason="offloading moves what is split from the GPU to the CPU's memory between uses",
    fix="set hardware.offload=false, or hardware.strategy=zero2, zero3 or fsdp on a GPU",
)
def offload_useless(case: Case) -> str | None:
    hardware = case.settings.hardware
    if not hardware.offload:
        return None
    if case.device == "cpu":
        return "all is in the CPU's memory already"
    if hardware.strategy not in spec.OFFLOADING:
        return f"hardware.strategy={hardware.strategy} splits nothing that could be moved"
    return None


@rule(
    "stage-of-one-process",
    keys=("stage.name", "hardware.num_processes", "hardware.strategy"),
    reason="what one process rolls out is not shared with the others, nor are weights gathered for a rollout",
    fix="set hardware.num_processes=1 and hardware.strategy=none",
)
def stage_of_one_process(case: Case) -> str | Broken | None:
    stage, hardware = case.settings.stage.name, case.settings.hardware
    if not registry.samples_answers(case.stage_spec):
        return None
    if hardware.num_processes > 1:
        return f"the rollouts of {stage} are made by one process"
    if "weights" in spec.SPLIT[hardware.strategy]:  # one process alone may have it, with offload
        message = f"the rollouts of {stage} are sampled with whole weights, and it splits them"
        return Broken(key="hardware.strategy", message=message)
    return None


@rule(
    "method-of-ranks",
    keys=("method.name", "hardware.strategy", "hardware.num_processes"),
    reason="ranks would step apart from each other, or by parts of a gradient",
    fix=(
        "set method=lora or method=full, or a strategy under which gradients are whole (ddp), or "
        "hardware.num_processes=1"
    ),
)
def method_of_ranks(case: Case) -> str | None:
    hardware, method = case.settings.hardware, case.settings.method
    name, bound = method.name, registry.hook(case.method_spec, "RANKS")
    if hardware.num_processes > 1 and bound == "alone":
        return f"{name} chooses or draws by itself what it updates"
    if hardware.num_processes > 1 and getattr(method, "layerwise", False):
        return f"{name} steps within the backward pass, before gradients are shared"
    if hardware.strategy in _SPLITTING and bound is not None:
        return f"the optimizer of {name} reads whole gradients, and {hardware.strategy} splits them"
    return None


@rule(
    "optimizer-of-ranks",
    keys=("stage.optimizer", "hardware.strategy"),
    reason="only an optimizer that steps each number by itself gives the same step on a part of a tensor",
    fix="set stage.optimizer=adamw or sgd, or hardware.strategy=ddp",
)
def optimizer_of_ranks(case: Case) -> str | None:
    hardware, optimizer = case.settings.hardware, case.settings.stage.optimizer
    if hardware.strategy not in _SPLITTING or optimizer in spec.ELEMENTWISE:
        return None
    return f"it steps whole tensors or keeps states of its own kind, and {hardware.strategy} splits tensors"


@rule(
    "strategy-limits",
    keys=("hardware.strategy", "stage.on_bad_update", "precision.name", "compute.compile", "hardware.device"),
    reason="ranks would step apart from each other, or fail at the first step",
    fix="set hardware.strategy=ddp",
)
def strategy_limits(case: Case) -> Iterator[Broken]:
    strategy, compute = case.settings.hardware.strategy, case.settings.compute
    if case.settings.stage.on_bad_update != "stop" and strategy in spec.ZERO:
        yield Broken(
            key="stage.on_bad_update",
            message=f"{strategy} cannot leave an update out",
            reason="DeepSpeed shares the gradients while it computes them",
            fix="set stage.on_bad_update=stop, or hardware.strategy=ddp or fsdp",
        )
    if choices.precision(case)[0] == "fp16" and strategy in _SPLITTING:
        yield Broken(
            key="precision.name",
            message=f"the loss scale is not shared by the parts that {strategy} splits",
            reason="one rank could skip a step that the others take",
            fix="set precision=bf16 or fp32, or hardware.strategy=ddp",
        )
    if compute.compile and "weights" in spec.SPLIT[strategy]:
        yield Broken(
            key="compute.compile",
            message=f"{strategy} gathers each layer's weights around what would be compiled",
            reason="the code would have to be compiled again for weights that come and go",
            fix="set compute.compile=false, or hardware.strategy=ddp",
        )


@rule(
    "quantized-and-split",
    keys=("method.quantization", "hardware.strategy", "model.path"),
    reason="the strategy is there to hold less in each process",
    fix="set hardware.strategy=fsdp with 4 bits by bitsandbytes, or hardware.strategy=ddp or zero2",
)
def quantized_and_split(case: Case) -> str | None:
    strategy, quantization = case.settings.hardware.strategy, case.settings.method.quantization
    if "weights" not in spec.SPLIT[strategy] or not stays_quantized(quantization, case.model.config):
        return None
    if strategy == "zero3":
        return "quantized weights would stay whole in each process"
    if quantization.bits == 4 and quantization.method == "bitsandbytes":
        return None
    return "only bitsandbytes' 4 bits can be split"
