"""The page's words in three languages. Keys and refusals stay in English: they are what is typed and searched for.

`words/LANGUAGE.yaml` has the same names in each; `docs` there are the keys' meanings, whose English is the schema's,
and `phrases` what types and units are said with, by the English that `typed` and `words` have.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from factory.config.parsed import yaml_of

LANGUAGES = {"en": "English", "zh": "中文", "ru": "Русский"}
_FOLDER = Path(__file__).parent / "words"


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    texts: dict[str, str]
    docs: dict[str, str]
    phrases: dict[str, str]

    def __call__(self, name: str, **values: Any) -> str:
        return self.texts[name].format_map(values)

    def doc(self, path: str, english: str) -> str:
        """A key's meaning."""
        return self.docs.get(path, english)

    def phrase(self, english: str) -> str:
        return self.phrases.get(english, english)


@cache
def words(language: str) -> Words:
    content = yaml_of((_FOLDER / f"{language}.yaml").read_text("utf-8"))
    return Words(**{part: content[part] for part in ("texts", "docs", "phrases")})
