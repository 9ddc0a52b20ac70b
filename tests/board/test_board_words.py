"""The page says the same in every language: the texts with their gaps, and the meaning of every key that it shows."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Formatter

import pytest
import yaml

from factory.board import fields, said
from factory.config import registry, settings
from factory.config.words import between, duration

TRANSLATED = [language for language in said.LANGUAGES if language != "en"]
FOLDER = Path(said.__file__).parent / "words"
# terms that people write in English there
SAME = {"zh": {"memory.logits"}, "ru": set[str]()}
# what is typed or looked up, so it stays: `code`, names with _ . or /, the two values that keys share
MARKED = re.compile(r"\[[^\]]+\]\(|\*.+?\*|(?<!\w)_.+?_(?!\w)", re.ASCII)
LITERAL = re.compile(r"`[^`]+`|\b(?:null|auto)\b|\w*_\w*|\w+(?:\.\w+)+|\w+/\w+")


def _shown() -> Iterator[fields.Field]:
    """Every field that the form has for some method and some stage."""
    for group in fields.FORMS:
        for name in registry.names(settings.NAMED[group]) if group in settings.NAMED else ("",):
            yield from fields.fields(group, {group: {"name": name}})


@cache
def _english() -> dict[str, list[str]]:
    """The docs by path: several where methods or stages mean a key each in its own way."""
    docs: dict[str, list[str]] = {}
    for each in _shown():
        docs.setdefault(each.path, []).append(each.doc)
    return docs


def _gaps(text: str) -> Counter[tuple[str, str | None, str | None]]:
    parsed = Formatter().parse(text)
    return Counter((name, spec, conversion) for _, name, spec, conversion in parsed if name is not None)


def _missing(docs: list[str], translated: str) -> set[str]:
    """What all the English docs have literally and the translation has not."""
    literal = set.intersection(*(set(LITERAL.findall(doc)) for doc in docs))
    return {each for each in literal if each not in translated}


def test_every_language_has_its_file_and_no_other_is_there() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(said.LANGUAGES)


@pytest.mark.parametrize("language", said.LANGUAGES)
def test_a_file_is_utf_8_yaml_of_texts_with_no_name_twice(language: str) -> None:
    content = (FOLDER / f"{language}.yaml").read_bytes().decode("utf-8")
    tree, nodes = yaml.safe_load(content), yaml.compose(content)
    assert set(tree) == {"texts", "docs", "phrases"}
    assert isinstance(nodes, yaml.MappingNode)
    for _, part in nodes.value:
        twice = [name for name, count in Counter(name.value for name, _ in part.value).items() if count > 1]
        assert not twice
    for name, text in [*tree["texts"].items(), *tree["docs"].items(), *tree["phrases"].items()]:
        assert isinstance(text, str), f"{name} is {text!r}: quote it"
        assert text == (text if name in tree["phrases"] else text.strip()) != "", name
        assert "\ufffd" not in text, name


@pytest.mark.parametrize("language", TRANSLATED)
def test_the_texts_are_those_of_english(language: str) -> None:
    english, translated = said.words("en").texts, said.words(language).texts
    assert set(translated) == set(english)
    assert {name: _gaps(text) for name, text in translated.items()} == {
        name: _gaps(text) for name, text in english.items()
    }
    assert {name for name, text in translated.items() if text == english[name]} == SAME[language]


@pytest.mark.parametrize("language", TRANSLATED)
def test_every_key_that_the_form_shows_is_explained(language: str) -> None:
    docs = said.words(language).docs
    assert set(docs) == set(_english())
    assert not [path for path, text in docs.items() if text in _english()[path]]


@pytest.mark.parametrize("language", TRANSLATED)
def test_what_is_typed_is_not_translated(language: str) -> None:
    docs = said.words(language).docs
    missing = {path: _missing(english, docs[path]) for path, english in _english().items()}
    assert {path: words for path, words in missing.items() if words} == {}


@pytest.mark.parametrize("language", TRANSLATED)
def test_types_and_units_are_said_in_the_language(language: str) -> None:
    asked, phrase = set[str](), said.words(language).phrase

    def asking(english: str) -> str:
        asked.add(english)
        return phrase(english)

    for each in _shown():
        if each.kind == "text":  # the form shows the types of these
            each.type(asking)
    seconds, minutes, hours, days = (duration(count, asking) for count in (30, 300, 30_000, 300_000))
    assert len({between(seconds, minutes, asking), between(hours, days, asking)}) == 2
    phrases = said.words(language).phrases
    assert set(phrases) == asked - {"null"}
    assert {name: text.count("{}") for name, text in phrases.items()} == {name: name.count("{}") for name in phrases}
    assert not [name for name, text in phrases.items() if name == text]


@pytest.mark.parametrize("language", said.LANGUAGES)
def test_no_doc_is_read_as_markdown(language: str) -> None:
    """Under its field Gradio shows `_8bit or paged_` slanted, without what it took for marks."""
    docs = {**{path: doc for path, texts in _english().items() for doc in texts}, **said.words(language).docs}
    assert not [text for text in docs.values() if MARKED.search(text)]


def test_the_english_docs_and_phrases_are_the_schemas_alone() -> None:
    assert said.words("en").docs == said.words("en").phrases == {}
