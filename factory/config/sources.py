"""Hydra's plugins of this package: where options come from beside conf/. Importing it registers them.

A `ConfigSource` and not the `ConfigStore`: with a row of the ConfigStore Hydra takes a user's file of the same name for
a part of that row and merges the two, so the file would not win.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from factory.config import tables

_SCHEME = "factory-table"


class Table(ConfigSource):
    """The rows of `factory.config.tables`, and the groups of a plan that is composed over."""

    @staticmethod
    def scheme() -> str:
        return _SCHEME

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return bool(tables.options(config_path.strip("/")))

    def is_config(self, config_path: str) -> bool:
        return self._option(config_path) is not None

    def load_config(self, config_path: str) -> ConfigResult:
        option = self._option(config_path)
        if option is None:
            raise ConfigLoadError(f"There is no row {config_path}")
        return ConfigResult(
            provider=self.provider,
            path=self.full_path(),
            config=OmegaConf.create(option.config),
            header={"package": option.package},
        )

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return [] if results_filter is ObjectType.GROUP else sorted(tables.options(config_path.strip("/")))

    def _option(self, config_path: str) -> tables.Option | None:
        group, _, name = config_path.removesuffix(".yaml").rpartition("/")
        if name == tables.PLANNED and group in Places.planned:
            return tables.Option(about="", config=Places.planned[group])
        return tables.options(group).get(name)


class Places(SearchPathPlugin):
    """The user's folders before the packaged one, the table after it."""

    folders: ClassVar[tuple[Path, ...]] = ()
    planned: ClassVar[Mapping[str, dict[str, Any]]] = {}

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.folders:
            search_path.prepend("own", f"file://{folder}", anchor="main")  # Hydra decodes no URI
        search_path.append("table", f"{_SCHEME}://")


for plugin in (Table, Places):
    Plugins.instance().register(plugin)
