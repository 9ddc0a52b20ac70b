"""What was asked of one run and not of all: what tells it from the others."""

from collections.abc import Mapping, Sequence

_PLACES = ("hydra.", "tracking.", "tracking=")  # where a run goes is not what is compared


def labels(options: Sequence[Mapping[str, str]], overrides: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Of each run: the options that are not chosen in all, then the overrides that not all were given.

    `options` are empty where they are not known: those on the command line stand for them.
    """
    groups = dict.fromkeys(group for each in options for group in each if group != "tracking")
    known = [each for each in options if each]
    unlike = [group for group in reversed(groups) if len({each.get(group) for each in known}) > 1]
    given = [
        [text for text in texts if not text.startswith(_PLACES) and _key(text) not in groups] for texts in overrides
    ]
    common = set.intersection(*map(set, given)) if given else set[str]()
    chosen = [_chosen(each, texts, unlike) for each, texts in zip(options, overrides, strict=True)]
    return tuple(
        " ".join([*groups_of, *(text for text in texts if text not in common)])
        for groups_of, texts in zip(chosen, given, strict=True)
    )


def _chosen(options: Mapping[str, str], overrides: Sequence[str], groups: Sequence[str]) -> list[str]:
    if options:
        return [f"{group}={options[group]}" for group in groups if group in options]
    return [text for text in overrides if "." not in _key(text) and _key(text) in groups]


def _key(text: str) -> str:
    return text.partition("=")[0].lstrip("+~")
