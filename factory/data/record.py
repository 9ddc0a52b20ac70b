"""The standard record that every data set is brought to (the paper, section 4.2, Table 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from factory.config.own import Kind as Kind

# what rows may be as they come: of prompts the records are messages without a response
RowKind = Literal["text", "messages", "pairs", "labelled", "prompts"]
Role = Literal["system", "user", "assistant", "tool"]
# what a content may have beside text: the mark `<image>` stands where one belongs; by the record's columns
MEDIA = {"images": "image", "videos": "video", "audios": "audio"}


class Medium(NamedTuple):
    """`kind` is image, video or audio; `place` a path, a file: URL or a data: URL."""

    kind: str
    place: str


class ToolCall(TypedDict):
    name: str
    arguments: dict[str, Any]


class Message(TypedDict):
    """`<image>` in a content stands where the record's next image belongs, `<video>` and `<audio>` likewise."""

    role: Role
    content: str
    reasoning: NotRequired[str]  # of an assistant: what it thought before it answered
    tool_calls: NotRequired[list[ToolCall]]
    name: NotRequired[str]  # of a tool: whose result it is
    weight: NotRequired[float]  # of an assistant: what its tokens count in the loss; 0: not trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`text` records have one response and no prompt; of a pair, `rejected` holds the worse response.

    A prompt alone has no response; its `solution` is what rewards are told of, not what is trained.
    A system message is the prompt's first. `tools` are functions as OpenAI's API describes them: {name, description,
    parameters}. Images, videos and audios are paths or URLs, in the order of their places in the contents.
    """

    prompt: tuple[Message, ...]
    response: tuple[Message, ...]
    rejected: tuple[Message, ...] = ()
    label: bool | None = None
    solution: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    audios: tuple[str, ...] = ()

    @property
    def media(self) -> dict[str, tuple[str, ...]]:
        """The places of what it has beside text, by kind; no kind that it has none of."""
        found = {kind: getattr(self, column) for column, kind in MEDIA.items()}
        return {kind: places for kind, places in found.items() if places}


def by_kind(media: Sequence[Medium]) -> dict[str, tuple[str, ...]]:
    """Their places, in their order."""
    kinds = dict.fromkeys(each.kind for each in media)
    return {kind: tuple(each.place for each in media if each.kind == kind) for kind in kinds}


TEMPLATE = "the chat template"  # how a reason begins that is of what renders the row
EMPTY = "is empty"  # how a reason ends that is of a row's content alone: its format may be the right one


class BadRow(ValueError):
    """A row that cannot be trained; the text is the reason that is counted: the same words for the same reason."""
