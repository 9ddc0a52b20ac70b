"""A plan that was compiled for another machine, or to be read: what the one that executes it lacks."""

from collections.abc import Iterator
from dataclasses import replace

from factory.config.refusal import Refusal, refusal
from factory.plan import evaluating, fitting, ranks, rules
from factory.plan.facts import Machine
from factory.plan.plan import Plan
from factory.quantizers import spec as quantizers
from factory.quantizers.checkpoint import checkpoint_quantizer


def lacking(made: Plan, machine: Machine, *, launched: bool) -> list[Refusal]:
    """What `train` would refuse, and `plan` only warned of. `launched`: as one of the ranks of an outer launcher."""
    return [*_packages(made, machine), *_of_ranks(made, machine, launched=launched), *_memory(made, machine)]


def _packages(made: Plan, machine: Machine) -> Iterator[Refusal]:
    steps = made.steps
    chosen = {"compute.attention": steps.patch.attention, "compute.kernels": steps.patch.kernels}
    if made.verb == "train":
        chosen["stage.optimizer"] = steps.train.optimizer
    if found := rules.lacking(chosen, machine):
        key, package = found
        yield refusal("package-missing", f"{key}={chosen[key]}", rules.missing(package), **rules.getting(package))  # pyright: ignore[reportArgumentType]
    asked, of_checkpoint = steps.quantize, checkpoint_quantizer(steps.load.config)
    if asked.bits is not None and (wrong := quantizers.lacking(asked.method, machine)):
        yield refusal(
            "quantizer-package",
            f"method.quantization.method={asked.method}",
            wrong,
            because="the library that quantizes is not part of the default installation",
            fix="install it, or set method.quantization.method=bitsandbytes",
            machine=True,
        )
    if of_checkpoint is not None and (wrong := quantizers.lacking(of_checkpoint, machine)):
        yield refusal(
            "checkpoint-package",
            f"model.path={steps.load.path}",
            wrong,
            because="the library that reads these weights is not part of the default installation",
            fix="install it, or name the unquantized model",
            machine=True,
        )
    if steps.evaluate.harness is not None and (wrong := evaluating.without_harness(machine)):
        yield refusal(
            "harness-package",
            f"evaluate.harness=[{','.join(steps.evaluate.harness.tasks)}]",
            wrong,
            because="the questions, and how they are asked and scored, are that library's",
            fix=(
                "install the extra harness (`factory doctor` has the command), or ask evaluate.benchmarks (mmlu, "
                "cmmlu, ceval), which need nothing more"
            ),
            machine=True,
        )


def _of_ranks(made: Plan, machine: Machine, *, launched: bool) -> Iterator[Refusal]:
    planned = made.steps.train.ranks
    if wrong := ranks.without_deepspeed(planned.strategy, machine):
        yield refusal(
            "deepspeed-missing",
            f"hardware.strategy={planned.strategy}",
            wrong,
            because="zero1, zero2 and zero3 are DeepSpeed's",
            fix="install it, or hardware.strategy=ddp or fsdp, which need torch alone",
            machine=True,
        )
    # a launcher may show each of its ranks its own card alone
    counted = made.steps.load.device == "cuda" and not launched
    if counted and (wrong := ranks.beyond_gpus(planned.of_node, machine)):
        yield refusal(
            "ranks-beyond-gpus",
            f"hardware.num_processes={planned.processes}",
            wrong,
            because="each process trains on a GPU of its own",
            fix="set hardware.num_processes to the number of GPUs, or hardware=cpu",
            machine=True,
        )


def _memory(made: Plan, machine: Machine) -> list[Refusal]:
    """By what is free here: what was planned with is another machine's, or was free then."""
    there = fitting.there_is(machine, made.steps.load.device, made.steps.train.ranks.of_node, free=True)
    memory = replace(made.estimate.memory, capacity=there)
    return fitting.against_memory(replace(made, estimate=replace(made.estimate, memory=memory)))
