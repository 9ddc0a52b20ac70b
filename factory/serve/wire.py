"""What clients send, as OpenAI's API has it. A field that nothing reads is refused: no wish is dropped in silence."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_MOST_CHOICES, _MOST_STOPS, _MOST_TOP, _MOST_ROWS = 128, 16, 20, 2048
_MOST_NAME = 64  # characters, as OpenAI's API has it


def _speakable(value: Any) -> Any:
    """Half of a surrogate pair, and what is nested too deep, is valid JSON and no text."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise ValueError("it holds what is no text") from None
    return value


Text = Annotated[str, AfterValidator(_speakable)]
Tree = Annotated[dict[str, Any], AfterValidator(_speakable)]
Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


def _none_of_it(value: Any) -> Any:
    if value not in (None, 0):
        raise ValueError("this server does not have it: leave it out, or 0")
    return value


Unsupported = Annotated[float, Field(ge=0, le=0), BeforeValidator(_none_of_it)]


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


def _whole_size(value: Any) -> Any:
    if value == "low":
        raise ValueError("images are seen at the sizes of the model's processor: leave it out, or send a smaller image")
    return value


class ImageUrl(Wire):
    url: Text
    detail: Annotated[Literal["auto", "high"], BeforeValidator(_whole_size)] = "auto"


class Part(Wire):
    type: Literal["text", "image_url"]
    text: Text | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Part":
        if getattr(self, self.type) is None:
            raise ValueError(f"a part of type {self.type} needs `{self.type}`")
        if getattr(self, "text" if self.type == "image_url" else "image_url"):
            raise ValueError("a part has a text or an image: send two parts")
        return self


class FunctionCall(Wire):
    name: Annotated[Text, Field(min_length=1, max_length=_MOST_NAME)]
    arguments: Text


class ToolCall(Wire):
    id: Text = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None = None
    # of a tool; agents send their own names too, which no template shows a model
    name: Annotated[Text, Field(max_length=_MOST_NAME)] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None
    reasoning_content: Text | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class Function(Wire):
    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_.-]+$", max_length=_MOST_NAME)]
    description: Text | None = None
    parameters: Tree | None = None
    strict: bool | None = None  # OpenAI's own helpers send it: it is taken, and arguments are held to no schema


class Tool(Wire):
    type: Literal["function"]
    function: Function


class ChosenFunction(Wire):
    name: Text


class ToolChoice(Wire):
    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(Wire):
    name: Text
    description: Text | None = None
    schema_: Annotated[Tree, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("type json_schema needs `json_schema`")
        if self.type == "text" and self.json_schema is not None:
            raise ValueError("type text is held to no schema: leave json_schema out, or send type json_schema")
        return self


class StreamOptions(Wire):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class Drawn(Wire):
    """How answers are drawn; what is not said is as the server's generation.* keys say."""

    model: Text
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=1, le=2**31)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=_MOST_STOPS)] | None = None
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = None
    # what is none of this server's is allowed where it asks for nothing
    frequency_penalty: Unsupported | None = None
    presence_penalty: Unsupported | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _told_with_a_stream(self) -> "Drawn":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true")
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class ChatRequest(Drawn):
    messages: Annotated[list[Message], Field(min_length=1, max_length=_MOST_ROWS)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=_MOST_TOP)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    store: Literal[False] | None = None
    metadata: dict[str, Text] | None = None
    service_tier: Literal["auto", "default"] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is for logprobs: true")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice is for requests with tools")
        held = self.response_format is not None and self.response_format.type != "text"
        if held and self.tools and self.tool_choice != "none":
            raise ValueError("an answer that response_format holds to JSON calls no tools: leave one of both out")
        if len({self.max_tokens, self.max_completion_tokens} - {None}) > 1:
            raise ValueError("max_tokens is the older name of max_completion_tokens: leave one of both out")
        return self


class CompletionRequest(Drawn):
    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=_MOST_CHOICES)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=_MOST_CHOICES)]
    )
    logprobs: Annotated[int, Field(ge=0, le=_MOST_TOP)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] | None = None
    suffix: None = None

    @model_validator(mode="after")
    def _fits(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of must be n: answers are not chosen among")
        if self.echo and self.logprobs is not None:
            raise ValueError("logprobs of an echoed prompt are not told")
        return self


class EmbeddingRequest(Wire):
    model: Text
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=_MOST_ROWS)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=_MOST_ROWS)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None
    user: Text | None = None


class ScoreRequest(Wire):
    """Of one conversation that ends with an answer, or of several."""

    model: Text
    messages: (
        Annotated[list[Message], Field(min_length=2)]
        | Annotated[list[Annotated[list[Message], Field(min_length=2)]], Field(min_length=1, max_length=_MOST_ROWS)]
    )
