"""Texts of others become plain values or a ValueError: no object, no other exception, no memory without an end."""

import pytest

from factory.config.parsed import NamedTwice, json_of, values, yaml_of

LAUGHS = "\n".join(
    [
        "a: &a [x, x, x, x, x, x, x, x, x, x]",
        *(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)),
    ]
)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.getcwd []",
        "!!python/name:os.system",
        "a: !!timestamp x",
        "a: !!int ''",
        "a: !!float x",
        "a: !!bool x",
        "a: 2001-99-99",
        "? [a, b]\n: {[c]: d}",
        "&a [*a]",
        "[" * 100_000,
        "a: " + "1" * 5_000,
        "\0",
        LAUGHS,
    ],
)
def test_what_is_no_plain_yaml_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        yaml_of(text)


def test_yaml_is_read_as_it_was() -> None:
    assert yaml_of(b"a: &x [1, 2.5, yes]\nb: *x\n") == {"a": [1, 2.5, True], "b": [1, 2.5, True]}
    assert yaml_of("") is None
    assert values({"a": [1, 2], "b": "x"}) == 7  # the mapping, its keys and values


@pytest.mark.parametrize("text", ["a: 1\na: 2", "[{b: {a: 1, 'a': 2}}]", '{"a": 1, "a": 2}', "a: 1\n&x a: 2"])
def test_a_key_that_stands_twice_is_told_where_it_is_asked(text: str) -> None:
    with pytest.raises(NamedTwice, match="has a key twice: 'a'"):
        yaml_of(text, once_each=True)
    yaml_of(text)


def test_keys_that_stand_once_are_read() -> None:
    text = "a: &a {x: 1, y: &y [1]}\nb: {<<: *a, x: 2, z: *y}\nc: {x: 3}"
    assert yaml_of(text, once_each=True) == yaml_of(text)
    assert yaml_of("", once_each=True) is None
    with pytest.raises(ValueError):
        yaml_of("&a [*a]", once_each=True)


def test_json_that_is_nested_too_deep_is_a_value_error() -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000, "{"):
        with pytest.raises(ValueError):
            json_of(text)
    assert json_of('{"a": [1]}') == {"a": [1]}
