"""A chat completion as asked, in OpenAI's form: what this model can do is done, all else is refused by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from fusar_edge.errors import EdgeError

MOST_TOKENS = 1 << 20
"""A larger max_tokens is no number of tokens; the context bounds the answer long before."""


class ChatError(EdgeError):
    """An error in OpenAI's form: status, message, and the parameter it is about."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ImageUrl(_Struct, frozen=True):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"
    """Changes nothing: every image is scaled to the size that the model takes."""


class TextPart(_Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class ImagePart(_Struct, frozen=True, tag_field="type", tag="image_url"):
    image_url: ImageUrl


class Turn(_Struct, frozen=True):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart | ImagePart] | None = None
    name: str | None = None


class StreamOptions(_Struct, frozen=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(_Struct, frozen=True):
    """Every field that is known; `_check_options` says which values of them are possible."""

    model: str
    messages: list[Turn]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class Question:
    """What is left of a request: one image, one question."""

    text: str
    image_url: str
    max_tokens: int | None
    """None: the bundle's longest answer."""
    stream: bool
    include_usage: bool


def question_from_body(body: bytes, model: str, system: str) -> Question:
    """ChatError 400, or 404 for another model, with the parameter at fault. `system`: the template's own."""
    try:
        asked = msgspec.json.decode(body, type=ChatRequest)
    except msgspec.ValidationError as problem:
        raise ChatError(400, f"{problem}", _param(str(problem))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ChatError(400, "the body is no JSON; send a chat completion request") from None
    if asked.model != model:
        raise ChatError(
            404,
            f"the model {asked.model[:80]!r} does not exist; this service has {model!r}",
            "model",
            "model_not_found",
        )
    _check_options(asked)
    text, image_url = _turn(asked.messages, system)
    streams = bool(asked.stream)
    if asked.stream_options is not None and not streams:
        raise ChatError(400, "stream_options is allowed only with stream: true", "stream_options")
    usage = bool(asked.stream_options and asked.stream_options.include_usage)
    return Question(text, image_url, _max_tokens(asked), streams, usage)


def _check_options(asked: ChatRequest) -> None:
    """Decoding is greedy and deterministic, and answers are text: what would change that cannot be had."""
    possible = {
        "temperature": (asked.temperature in (None, 0), "0, or leave it out: the most probable token is always taken"),
        "top_p": (asked.top_p is None or 0 < asked.top_p <= 1, "above 0 and at most 1; it changes nothing"),
        "n": (asked.n in (None, 1), "1: a greedy answer has no second one"),
        "stop": (not asked.stop, "none: an answer ends where the model ends it, or at max_tokens"),
        "presence_penalty": (not asked.presence_penalty, "0"),
        "frequency_penalty": (not asked.frequency_penalty, "0"),
        "logit_bias": (not asked.logit_bias, "none"),
        "logprobs": (not asked.logprobs, "false"),
        "top_logprobs": (not asked.top_logprobs, "0"),
        "response_format": (asked.response_format in (None, {"type": "text"}), '{"type": "text"}'),
        "tools": (not asked.tools, "none: the model calls no tools"),
        "tool_choice": (asked.tool_choice in (None, "none", "auto"), "none"),
        "modalities": (asked.modalities in (None, ["text"]), '["text"]'),
        "service_tier": (asked.service_tier in (None, "auto", "default"), "auto or default"),
        "store": (not asked.store, "false: answers to questions are not kept"),
    }
    for name, (ok, allowed) in possible.items():
        if not ok:
            raise ChatError(400, f"{name} as given cannot be done; allowed is {allowed}", name, "unsupported_value")


def _max_tokens(asked: ChatRequest) -> int | None:
    given = {asked.max_tokens, asked.max_completion_tokens} - {None}
    if len(given) > 1:
        raise ChatError(400, "max_tokens and max_completion_tokens are two numbers; give one", "max_tokens")
    most = given.pop() if given else None
    if most is not None and not 1 <= most <= MOST_TOKENS:
        raise ChatError(400, f"max_tokens must be 1 to {MOST_TOKENS}", "max_tokens")
    return most


def _turn(turns: list[Turn], system: str) -> tuple[str, str]:
    """Text and image of the one question."""
    rest = [turn for turn in turns if turn.role not in ("system", "developer") or _text(turn).strip() != system]
    if len(rest) != 1 or rest[0].role != "user":
        raise ChatError(
            400,
            "this model answers one question about one image: give one message of the role user and no earlier turns; "
            f"a system message may only be the model's own: {system!r}",
            "messages",
            "unsupported_value",
        )
    content = rest[0].content
    images = (
        [part.image_url.url for part in content if isinstance(part, ImagePart)] if isinstance(content, list) else []
    )
    if len(images) != 1:
        raise ChatError(400, f"{len(images)} images were given; the message needs exactly one image_url", "messages")
    text = _text(rest[0])
    if not text.strip():
        raise ChatError(400, "no text was given; ask a question about the image", "messages")
    return text, images[0]


def _text(turn: Turn) -> str:
    if isinstance(turn.content, list):
        return "\n".join(part.text for part in turn.content if isinstance(part, TextPart))
    return turn.content or ""


def _param(problem: str) -> str | None:
    """Name of the field that msgspec complains about."""
    found = re.search(r"unknown field `([^`]*)`", problem) or re.search(r"\$\.([^`\[]*)", problem)
    found = found or re.search(r"required field `([^`]*)`", problem)
    return found[1][:80] if found else None
