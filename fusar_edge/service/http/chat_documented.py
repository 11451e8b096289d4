"""What the OpenAPI document says about the chat routes, whose form is OpenAI's."""

from __future__ import annotations

from typing import Any

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_TEXT = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string", "minLength": 1}},
    "additionalProperties": False,
}
_IMAGE = {
    "type": "object",
    "required": ["type", "image_url"],
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {
            "type": "object",
            "required": ["url"],
            "properties": {
                "url": {
                    "type": "string",
                    "pattern": "^data:image/(png|jpeg|tiff);base64,",
                    "description": "A PNG, JPEG or TIFF of at most 4096 x 4096 pixels",
                },
                "detail": {"enum": ["auto", "low", "high"], "description": "Changes nothing"},
            },
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"const": "user"},
        "content": {
            "type": "array",
            "description": "One image and the question about it",
            "items": {"oneOf": [_TEXT, _IMAGE]},
            "minItems": 2,
        },
    },
    "additionalProperties": False,
}
_TOKENS = {"type": "integer", "minimum": 1, "maximum": 1 << 20}
_REQUEST = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {
        "model": {"type": "string", "description": "Id of GET /v1/models"},
        "messages": {"type": "array", "items": _MESSAGE, "minItems": 1, "maxItems": 1},
        "max_tokens": _TOKENS,
        "max_completion_tokens": _TOKENS,
        "stream": {"type": "boolean"},
        "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
        "temperature": {"const": 0},
        "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "description": "Changes nothing"},
        "n": {"const": 1},
        "seed": {"type": "integer", "description": "Changes nothing: decoding is greedy"},
        "user": {"type": "string", "description": "Changes nothing"},
        "metadata": {"type": "object", "description": "Changes nothing"},
    },
}
_COMPLETION = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "object"}, "minItems": 1, "maxItems": 1},
        "usage": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}
_MODELS = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}},
}


def _json(description: str, schema: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}, **others}}


def _errors(**statuses: str) -> dict[int | str, dict[str, Any]]:
    return {int(status[1:]): _json(why, _ERROR) for status, why in statuses.items()}


_CHUNKS = {"text/event-stream": {"schema": {"type": "string", "description": "chat.completion.chunk events"}}}
DOCUMENTED: dict[str, Any] = {
    "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST}}}},
    "responses": {
        200: _json("The answer; events with `stream`", _COMPLETION, **_CHUNKS),
        **_errors(
            _400="What was asked cannot be done; `param` names it",
            _404="No such model",
            _408="The request did not arrive in time",
            _413="The request is too long",
            _429="Too many questions wait; Retry-After says when to ask again",
            _503="No engine runs",
            _507="The disk is full",
        ),
    },
}
MODELS_DOCUMENTED: dict[str, Any] = {"responses": {200: _json("The models", _MODELS)}}
MODEL_DOCUMENTED: dict[str, Any] = {
    "responses": {200: _json("The model", _MODEL), **_errors(_404="No such model")},
}
