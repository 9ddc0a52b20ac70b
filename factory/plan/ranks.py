"""Several processes: what of a run can be shared among them, and how it is planned."""

from packaging.version import Version

from factory.architecture import FAMILIES
from factory.config import registry
from factory.config.extras import install
from factory.config.settings import Strategy
from factory.config.words import counted
from factory.plan import choices
from factory.plan.facts import Machine
from factory.plan.plan import Dtype, Ranks
from factory.plan.rule import Case, Rule
from factory.quantizers.spec import stays_quantized
from factory.ranks import spec

_SPLITTING = ("fsdp", *spec.ZERO)
_READS_BY_PLAN = "5.23"  # transformers' version from which `DistributedConfig` has an `fsdp_plan`


def planned(case: Case, *, read_as: Dtype, trained_as: Dtype, autocast: Dtype | None) -> Ranks:
    hardware, stage, arch = case.settings.hardware, case.settings.stage, case.expanded
    shapes = case.trained | case.heads
    return Ranks(
        strategy=hardware.strategy,
        processes=hardware.num_processes,
        nodes=hardware.num_nodes,
        offload=hardware.offload,
        timeout=hardware.rank_timeout,
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


def _nodes_uneven(case: Case) -> str | None:
    hardware = case.settings.hardware
    uneven = hardware.num_processes % hardware.num_nodes
    return f"{hardware.num_processes} processes cannot be spread evenly over them" if uneven else None


def _nodes_need_launcher(case: Case) -> str | None:
    several = case.settings.hardware.num_nodes > 1 and _nodes_uneven(case) is None
    return "processes are started on this machine only" if several else None


def _no_strategy(case: Case) -> str | None:
    hardware = case.settings.hardware
    alone = hardware.num_processes > 1 and hardware.strategy == "none"
    return f"{hardware.num_processes} processes would each train a model of their own" if alone else None


def _one_process(case: Case) -> str | None:
    hardware = case.settings.hardware
    if hardware.num_processes > 1 or hardware.strategy == "none" or hardware.offload:
        return None
    return "there is one process, and nobody to share with"


def _timeout_unread(case: Case) -> str | None:
    alone = case.asked("hardware.rank_timeout") and case.settings.hardware.num_processes == 1
    return "there is one process, and nobody who waits for it" if alone else None


def _more_than_gpus(case: Case) -> str | None:
    hardware = case.settings.hardware
    alone = case.device == "cuda" and hardware.num_nodes == 1
    return beyond_gpus(hardware.num_processes, case.facts.machine) if alone else None


def beyond_gpus(processes: int, machine: Machine) -> str | None:
    """What is wrong with so many processes on this machine's GPUs, if anything."""
    gpus = machine.gpus
    if processes <= max(1, len(gpus)):
        return None
    return f"there {'is one GPU' if len(gpus) == 1 else f'are {len(gpus)} GPUs'} here"


def _offload(case: Case) -> str | None:
    hardware = case.settings.hardware
    if not hardware.offload:
        return None
    if case.device == "cpu":
        return "all is in the CPU's memory already"
    if hardware.strategy not in spec.OFFLOADING:
        return f"hardware.strategy={hardware.strategy} splits nothing that could be moved"
    return None


def _deepspeed_missing(case: Case) -> str | None:
    return without_deepspeed(case.settings.hardware.strategy, case.facts.machine)


def without_deepspeed(strategy: Strategy, machine: Machine) -> str | None:
    """What is wrong with the strategy on this machine, if anything."""
    if strategy not in spec.ZERO or "deepspeed" in machine.packages:
        return None
    return f"DeepSpeed is not installed: {install('deepspeed')}"


def _streamed(case: Case) -> str | None:
    several = case.settings.hardware.num_processes > 1
    return "each process would read all of the stream" if several and case.settings.data.streaming else None


def _stage_alone(case: Case) -> str | tuple[str, str] | None:
    stage, hardware = case.settings.stage.name, case.settings.hardware
    if not registry.samples_answers(case.stage_spec):
        return None
    if hardware.num_processes > 1:
        return f"the rollouts of {stage} are made by one process"
    if "weights" in spec.SPLIT[hardware.strategy]:  # one process alone may have it, with offload
        return "hardware.strategy", f"the rollouts of {stage} are sampled with whole weights, and it splits them"
    return None


def _method(case: Case) -> tuple[str, str] | None:
    hardware, method = case.settings.hardware, case.settings.method
    name, bound = method.name, registry.hook(case.method_spec, "RANKS")
    if hardware.num_processes > 1 and bound == "alone":
        return "method.name", f"{name} chooses or draws by itself what it updates"
    if hardware.num_processes > 1 and getattr(method, "layerwise", False):
        return "method.name", f"{name} steps within the backward pass, before gradients are shared"
    if hardware.strategy in _SPLITTING and bound is not None:
        return "method.name", f"the optimizer of {name} reads whole gradients, and {hardware.strategy} splits them"
    return None


def _optimizer(case: Case) -> str | None:
    hardware, optimizer = case.settings.hardware, case.settings.stage.optimizer
    if hardware.strategy not in _SPLITTING or optimizer in spec.ELEMENTWISE:
        return None
    return f"it steps whole tensors or keeps states of its own kind, and {hardware.strategy} splits tensors"


def _bad_update(case: Case) -> str | None:
    asked, strategy = case.settings.stage.on_bad_update, case.settings.hardware.strategy
    return f"{strategy} cannot leave an update out" if asked != "stop" and strategy in spec.ZERO else None


def _precision(case: Case) -> str | None:
    strategy = case.settings.hardware.strategy
    half = choices.precision(case)[0] == "fp16" and strategy in _SPLITTING
    return f"the loss scale is not shared by the parts that {strategy} splits" if half else None


def _quantized(case: Case) -> str | None:
    strategy, asked = case.settings.hardware.strategy, case.settings.method.quantization
    if "weights" not in spec.SPLIT[strategy] or not stays_quantized(asked, case.model.config):
        return None
    if strategy == "zero3":
        return "quantized weights would stay whole in each process"
    if asked.bits == 4 and asked.method == "bitsandbytes":
        return None
    return "only bitsandbytes' 4 bits can be split"


def _compiled(case: Case) -> str | None:
    strategy = case.settings.hardware.strategy
    wrong = case.settings.compute.compile and "weights" in spec.SPLIT[strategy]
    return f"{strategy} gathers each layer's weights around what would be compiled" if wrong else None


RULES: tuple[Rule, ...] = (
    Rule("nodes-uneven", _nodes_uneven),
    Rule("nodes-need-launcher", _nodes_need_launcher),
    Rule("ranks-without-strategy", _no_strategy),
    Rule("strategy-without-ranks", _one_process),
    Rule("rank-timeout-unread", _timeout_unread),
    Rule("ranks-beyond-gpus", _more_than_gpus),
    Rule("offload-useless", _offload),
    Rule("deepspeed-missing", _deepspeed_missing),
    Rule("ranks-of-a-stream", _streamed),
    Rule("stage-of-one-process", _stage_alone),
    Rule("method-of-ranks", _method),
    Rule("optimizer-of-ranks", _optimizer),
    Rule("bad-update-of-ranks", _bad_update),
    Rule("precision-of-ranks", _precision),
    Rule("quantized-and-split", _quantized),
    Rule("compiled-and-split", _compiled),
)
