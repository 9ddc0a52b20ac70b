"""A plan that was compiled for another machine, or to be read: what the one that executes it lacks."""

from collections.abc import Iterator
from dataclasses import replace

from factory.config.refusal import Refusal
from factory.plan import fitting, packages, ranks
from factory.plan.facts import Machine
from factory.plan.plan import Plan
from factory.plan.rule import Broken


def lacking(made: Plan, machine: Machine, *, launched: bool) -> list[Refusal]:
    """What `train` would refuse, and `plan` only warned of. `launched`: as one of the ranks of an outer launcher."""
    return [
        *packages.missing_of_plan(made, machine.packages),
        *_of_ranks(made, machine, launched=launched),
        *_memory(made, machine),
    ]


def _of_ranks(made: Plan, machine: Machine, *, launched: bool) -> Iterator[Refusal]:
    hardware = made.settings.hardware
    # a launcher may show each of its ranks only its own card
    counted = made.steps.load.device == "cuda" and not launched
    if counted and (wrong := ranks.beyond_gpus(hardware.num_processes // hardware.num_nodes, machine)):
        setting = f"hardware.num_processes={hardware.num_processes}"
        yield ranks.ranks_beyond_gpus.refusal(setting, Broken(message=wrong))


def _memory(made: Plan, machine: Machine) -> list[Refusal]:
    """By what is free here: what was planned with is another machine's, or was free then."""
    hardware = made.settings.hardware
    of_node = hardware.num_processes // hardware.num_nodes
    there = fitting.there_is(machine, made.steps.load.device, of_node, free=True)
    memory = replace(made.estimate.memory, capacity=there)
    return fitting.against_memory(replace(made, estimate=replace(made.estimate, memory=memory)))
