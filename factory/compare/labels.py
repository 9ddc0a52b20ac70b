"""What was asked of one run and not of all: what tells it from the others."""

from collections.abc import Collection, Mapping, Sequence

from factory.config.line import name_of

_PLACES = ("hydra.", "tracking.", "tracking=")  # where a run goes is not what is compared


def labels(options: Sequence[Mapping[str, str]], overrides: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Of each run: the options that are not chosen in all, then the overrides that not all were given.

    `options` are empty where they are not known: those on the command line stand for them. A run of which neither is
    known has no label, and takes none from the others.
    """
    groups = dict.fromkeys(group for each in options for group in each if group != "tracking")
    chosen = [each or _named(texts, groups) for each, texts in zip(options, overrides, strict=True)]
    unlike = [group for group in reversed(groups) if len({each[group] for each in chosen if group in each}) > 1]
    given = [
        [text for text in texts if not text.startswith(_PLACES) and name_of(text) not in groups] for texts in overrides
    ]
    known = [set(texts) for each, texts in zip(options, given, strict=True) if each or texts]
    common = set.intersection(*known) if known else set[str]()
    return tuple(
        " ".join(
            [
                *(f"{group}={each[group]}" for group in unlike if group in each),
                *(text for text in texts if text not in common),
            ]
        )
        for each, texts in zip(chosen, given, strict=True)
    )


def _named(overrides: Sequence[str], groups: Collection[str]) -> dict[str, str]:
    """The options on a command line."""
    return {name_of(text): text.partition("=")[2] for text in overrides if name_of(text) in groups}
