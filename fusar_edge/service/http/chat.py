"""POST /v1/chat/completions and GET /v1/models in OpenAI's form, so that its clients work: one image, one question."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from fusar_edge.errors import BusyError, EdgeError
from fusar_edge.manifest import FILENAME
from fusar_edge.runtime.bundle import TOKENIZER
from fusar_edge.runtime.tokenizer import Tokenizer
from fusar_edge.service.http.chat_answer import RunningAnswer, TextStream
from fusar_edge.service.http.chat_documented import DOCUMENTED, MODEL_DOCUMENTED, MODELS_DOCUMENTED
from fusar_edge.service.http.chat_image import grey_from_data_url
from fusar_edge.service.http.chat_reply import Reply, error_body, error_response, event, finish_reason
from fusar_edge.service.http.chat_request import ChatError, Question, question_from_body
from fusar_edge.service.parts import ServiceParts

log = logging.getLogger(__name__)
T = TypeVar("T")

BODY_BYTES = 24 << 20
"""An image of 16 MiB and its question."""
AT_ONCE = 8
"""Requests whose image is being received or decoded: bounds the memory."""
DECODED_AT_ONCE = 2
RETRY_S = 2.0
ARRIVAL_S = 120.0
"""For the whole of a request to arrive."""
UNBUFFERED = {"X-Accel-Buffering": "no"}
"""For a proxy before us: each chunk goes out as it comes."""


class Chat:
    """What the routes share."""

    def __init__(self, parts: ServiceParts) -> None:
        bundle = parts.bundle
        self.parts, self.settings = parts, bundle.settings
        self.model = bundle.settings.name or "fusar-gpt"
        self.fingerprint = f"fp_{bundle.sha256[:12]}"
        self.created = int((bundle.folder / FILENAME).stat().st_mtime)
        self.tokenizer = Tokenizer(bundle.file(TOKENIZER))
        """The event loop's own: the engines have theirs."""
        self.after_question = self.tokenizer.encode(bundle.prompts.after_question)
        ends = self.tokenizer.encode(bundle.prompts.before_image), self.tokenizer.encode(bundle.prompts.after_image)
        self.prefix_tokens = sum(map(len, ends)) + bundle.settings.cells**2
        found = re.search(r"<\|im_start\|>system\n(.*?)<\|im_end\|>", bundle.prompts.before_image, re.DOTALL)
        self.system = found[1].strip() if found else ""
        self._at_once = 0
        self._decoding = asyncio.Semaphore(DECODED_AT_ONCE)

    async def begin(self, request: Request) -> tuple[Question, int, RunningAnswer]:
        """Read, check, decode, and put before an engine. Returns the question, its prompt's tokens and the answer."""
        with self._turn():
            question = question_from_body(await _body(request), self.model, self.system)
            prompt_tokens = self._prompt_tokens(question.text)
            async with self._decoding:
                size = self.settings.image_size
                grey = await run_in_threadpool(grey_from_data_url, question.image_url, self.parts.intake, size)
        longest = question.max_tokens or max(self.settings.max_new_tokens.values(), default=512)
        return question, prompt_tokens, RunningAnswer(self.parts.pipeline, grey, question.text, longest)

    def model_card(self) -> dict[str, Any]:
        return {"id": self.model, "object": "model", "created": self.created, "owned_by": "fusar-edge"}

    def _prompt_tokens(self, text: str) -> int:
        """Of image, template and question; ChatError where they leave no room for an answer."""
        most = self.settings.context_tokens
        # No token is so long: a text of megabytes is refused before it is tokenised.
        tokens = most if len(text) > 64 * most else len(self.tokenizer.encode_plain(text))
        tokens += self.prefix_tokens + len(self.after_question)
        if tokens >= most:
            raise ChatError(
                400,
                f"image and question are {tokens} tokens or more, the context has {most}; ask a shorter question",
                "messages",
                "context_length_exceeded",
            )
        return tokens

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if self._at_once >= AT_ONCE:
            raise BusyError(f"{AT_ONCE} images are being taken in, the most at once; ask again in a moment", RETRY_S)
        self._at_once += 1
        try:
            yield
        finally:
            self._at_once -= 1


def router(parts: ServiceParts) -> APIRouter:
    """All routes. Auth is the gate's: a question takes the scope `submit`."""
    chat = Chat(parts)
    routes = APIRouter(tags=["chat"])

    @routes.post("/v1/chat/completions", **DOCUMENTED)
    async def complete(request: Request) -> Response:
        """Ask the model one question about one image (PNG, JPEG or TIFF as a data URL), in OpenAI's form.

        Decoding is greedy. Options that ask for what cannot be had are refused by name.
        """
        try:
            question, prompt_tokens, answer = await chat.begin(request)
            try:
                first = await _connected(request, answer.token())  # an error before it still has a status of its own
                reply = Reply(chat.model, chat.fingerprint, prompt_tokens)
                if question.stream:
                    chunks = _chunks(chat, reply, answer, first, question.include_usage)
                    return StreamingResponse(chunks, media_type="text/event-stream", headers=UNBUFFERED)
                if first is not None:
                    await _connected(request, answer.end())
                generation = answer.result()
                return JSONResponse(reply.whole(chat.tokenizer.decode(list(generation.ids)), generation))
            except BaseException:
                answer.leave()
                raise
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except (EdgeError, OSError) as problem:
            return error_response(problem)

    @routes.get("/v1/models", **MODELS_DOCUMENTED)
    async def models() -> Response:
        """The one model of this service."""
        return JSONResponse({"object": "list", "data": [chat.model_card()]})

    @routes.get("/v1/models/{model}", **MODEL_DOCUMENTED)
    async def model(model: str) -> Response:
        """The model by its id."""
        if model != chat.model:
            return error_response(ChatError(404, "no model has this id; see /v1/models", "model", "model_not_found"))
        return JSONResponse(chat.model_card())

    return routes


async def _chunks(
    chat: Chat, reply: Reply, answer: RunningAnswer, token: int | None, include_usage: bool
) -> AsyncIterator[bytes]:
    """The answer as server-sent events; ends the answer when the client has gone."""
    text = TextStream(chat.tokenizer)
    usage: dict[str, Any] = {"usage": None} if include_usage else {}
    try:
        yield reply.chunk({"role": "assistant", "content": ""}, **usage)
        while token is not None:
            if piece := text.push(token):
                yield reply.chunk({"content": piece}, **usage)
            token = await answer.token()
        if piece := text.end():
            yield reply.chunk({"content": piece}, **usage)
        generation = answer.result()
        yield reply.chunk({}, finish_reason(generation), **usage)
        if include_usage:
            yield reply.chunk(None, usage=reply.usage(generation))
        yield b"data: [DONE]\n\n"
    except Exception as problem:  # the status is sent: what is left is to say it in the stream
        if not isinstance(problem, EdgeError):
            log.exception("an answer broke off")
        yield event(error_body(problem)[1])
    finally:
        answer.leave()


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(ARRIVAL_S):
            async for piece in request.stream():
                body += piece
                if len(body) > BODY_BYTES:
                    raise ChatError(413, f"the request has more than {BODY_BYTES >> 20} MiB; send a smaller image")
    except TimeoutError:
        raise ChatError(408, f"the request did not arrive within {ARRIVAL_S:.0f} s") from None
    return bytes(body)


async def _connected(request: Request, awaited: Coroutine[Any, Any, T]) -> T:
    """What is awaited; ClientDisconnect as soon as the client leaves before."""
    waiting = asyncio.ensure_future(awaited)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise ClientDisconnect
    finally:
        for task in (waiting, leaving):
            task.cancel()
        await asyncio.gather(waiting, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    """Returns when the client has gone; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
