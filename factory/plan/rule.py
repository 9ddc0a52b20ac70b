"""A rule: which keys it reads, when it is violated, why that cannot work, and what to do."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

from pydantic import BaseModel

from factory.architecture import Architecture, Shape, Traits, traits_of
from factory.config import registry
from factory.config.line import name_of
from factory.config.refusal import Refusal, refusal
from factory.config.settings import OF_TRAINING, Settings
from factory.config.values import plain, to_tree
from factory.plan import heads
from factory.plan.facts import Facts, ModelFacts
from factory.plan.vocabulary import Vocabulary, grown


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a rule sees. A rule that reads model.* runs only where the model is known."""

    settings: Settings
    facts: Facts
    read: Architecture | None  # as the model's files have it
    rows: Vocabulary | None  # what its vocabulary grows to

    @property
    def known(self) -> bool:
        """Whether the model's architecture is."""
        return self.read is not None

    @cached_property
    def arch(self) -> Architecture:
        """The architecture that is trained: the vocabulary has grown, and what the stage never reaches is fixed."""
        assert self.read is not None
        return heads.reached(self.settings.stage.name, grown(self.read, self.vocabulary))

    @cached_property
    def expanded(self) -> Architecture:
        """With the layers that the method adds."""
        expand = registry.hook(self.method_spec, "expanded")
        return expand(self.settings.method, self.arch) if expand else self.arch

    @property
    def traits(self) -> Traits:
        """What the model's class can do."""
        return self.arch.traits or traits_of(self.arch.kind)

    @property
    def vocabulary(self) -> Vocabulary:
        assert self.rows is not None
        return self.rows

    @property
    def model(self) -> ModelFacts:
        assert self.facts.model is not None
        return self.facts.model

    @property
    def stage_spec(self) -> ModuleType:
        return registry.spec("stages", self.settings.stage.name)

    @property
    def method_spec(self) -> ModuleType:
        return registry.spec("methods", self.settings.method.name)

    @property
    def trained(self) -> dict[str, Shape]:
        """The tensors that the method trains."""
        return self.method_spec.trainable(self.settings.method, self.arch)

    @property
    def heads(self) -> dict[str, Shape]:
        """Those that the stage trains beside them."""
        return heads.heads(self.settings.stage.name, self.arch)

    def asked(self, key: str) -> bool:
        """Whether somebody set the key: its default is no wish."""
        return key in map(name_of, self.settings.overrides)

    def idle(self, key: str) -> bool:
        """Whether the key says how one trains and nothing trains: a run that is measured was made with it."""
        return self.settings.verb != "train" and key in OF_TRAINING

    @property
    def device(self) -> str:
        """Where the run would train: a named card and `single_gpu` mean a GPU, `auto` what is here."""
        asked = self.settings.hardware.device
        return ("cuda" if self.facts.machine.gpus else "cpu") if asked == "auto" else asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A violation of a rule: its message, and what differs from the rule's own first key, reason and fix."""

    message: str
    key: str | None = None
    reason: str | None = None
    fix: str | None = None


Found = str | Broken | Iterable[Broken] | None


@dataclass(frozen=True, slots=True)
class Rule:
    """A function of a case that returns what is wrong with it, or None, and the words around it.

    `keys`: the settings that it reads; the first is shown unless a `Broken` names another. `machine`: lacking here, not
    wrong in itself, so a warning in `plan` and a refusal in `train`.
    """

    id: str
    keys: tuple[str, ...]
    reason: str
    fix: str
    machine: bool
    check: Callable[[Case], Found]

    def applies(self, case: Case) -> bool:
        """Return whether the model is known, where the rule reads it."""
        return case.known or not any(key.startswith("model.") for key in self.keys)

    def refusals(self, case: Case) -> list[Refusal]:
        """Return the violations in a case. Keys of training are never reported where nothing trains."""
        found = self.check(case)
        broken = [Broken(message=found)] if isinstance(found, str) else [found] if isinstance(found, Broken) else found
        named = [(each.key or self.keys[0], each) for each in broken or ()]
        return [
            self.refusal(f"{key}={value_of(case.settings, key)}", each) for key, each in named if not case.idle(key)
        ]

    def refusal(self, setting: str, broken: Broken) -> Refusal:
        reason, fix = broken.reason or self.reason, broken.fix or self.fix
        return refusal(self.id, setting, broken.message, because=reason, fix=fix, machine=self.machine)


def rule(
    id: str, *, keys: tuple[str, ...], reason: str, fix: str, machine: bool = False
) -> Callable[[Callable[[Case], Found]], Rule]:
    """Make a rule of a function. The rules of a module apply where the module is in use (`factory.plan.rules`)."""

    def made(check: Callable[[Case], Found]) -> Rule:
        return Rule(id, keys, reason, fix, machine, check)

    return made


def rules_in(module: ModuleType) -> list[Rule]:
    """Return the rules that a module defines, in their order; not those that it imports."""
    made = (each for each in vars(module).values() if isinstance(each, Rule))
    return [each for each in made if each.check.__module__ == module.__name__]


def value_of(settings: Settings, path: str) -> str:
    """A key's value as a user would write it; of data.sources, their names."""
    value: object = settings
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    if isinstance(value, BaseModel):
        value = {name: each for name, each in to_tree(value).items() if each is not None}
        return f"{{{', '.join(f'{name}: {plain(each)}' for name, each in value.items())}}}"
    if isinstance(value, dict):
        return ",".join(value)
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return plain(value)
