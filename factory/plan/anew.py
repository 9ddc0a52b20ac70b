"""Plans of command lines: composed, looked up, compiled. `Anew` makes many that differ in a few keys."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from factory.config import compose, settings
from factory.config.refusal import UserError
from factory.config.settings import Settings
from factory.data import catalogue
from factory.plan import known
from factory.plan.compiler import compile
from factory.plan.facts import Facts
from factory.plan.inspect import asked, look
from factory.plan.plan import Plan, Verb

Look = Callable[[Settings], Facts]


def compiled(composed: compose.Composed, *, training: bool, verb: Verb = "train", facts: Look | None = None) -> Plan:
    """The plan of a composed tree. Raises UserError with every problem there is."""
    chosen = settings_of(composed, verb)
    found = facts(chosen) if facts else look(chosen, training=training)
    if composed.awaited is not None:
        chosen, found = composed.awaited(chosen, found)
    made = compile(chosen, found, training=training)
    if isinstance(made, list):
        raise UserError(*made)
    return known.exact(made)


def settings_of(composed: compose.Composed, verb: Verb = "train") -> Settings:
    """Return the validated settings of a composed tree. Raises UserError with every problem there is."""
    tree = {**composed.tree, "data": catalogue.with_entries(composed.tree.get("data", {}))}
    problems = composed.problems
    try:
        chosen = settings.validate(
            tree,
            options=composed.options,
            overrides=composed.overrides,
            run_dir=composed.run_dir,
            config_dirs=tuple(str(Path(folder).absolute()) for folder in composed.config_dirs),
            verb=verb,
        )
    except UserError as error:
        raise UserError(*problems, *error.refusals) from None
    if problems:
        raise UserError(*problems)
    return chosen


class Anew:
    """The plan of any overrides, as `factory plan` makes it.

    What is outside is looked up once for all that ask alike.
    """

    def __init__(self, config_dirs: tuple[str, ...] = ()):
        self._config_dirs = config_dirs
        self._looked: list[tuple[Any, Facts]] = []

    def __call__(self, overrides: tuple[str, ...]) -> Plan:
        """Raises UserError."""
        return self.of(self.composed(overrides))

    def composed(self, overrides: tuple[str, ...]) -> compose.Composed:
        """Raises UserError."""
        return compose.compose(compose.CommandLine(overrides=overrides, config_dirs=self._config_dirs))

    def of(self, composed: compose.Composed) -> Plan:
        """Raises UserError."""
        return compiled(composed, training=False, facts=self._look)

    def _look(self, chosen: Settings) -> Facts:
        question = asked(chosen)
        found = next((facts for other, facts in self._looked if other == question), None)
        if found is None:
            found = look(chosen, training=False)
            self._looked.append((question, found))
        return found
