"""One question on its way through an engine: tokens as they are chosen, text as it becomes certain."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from fusar_edge.runtime.generate import Generation
from fusar_edge.runtime.session import Session
from fusar_edge.runtime.tokenizer import Tokenizer
from fusar_edge.service.pipeline import Pipeline


class Left(Exception):
    """Whoever asked has gone: the rest of the answer is not worth the engine's time."""


class RunningAnswer:
    """Made on the event loop, which reads it; the engine's thread fills it."""

    def __init__(self, pipeline: Pipeline, grey: npt.NDArray[np.float32], text: str, max_tokens: int) -> None:
        """BusyError where too many questions wait already. grey [S, S] in 0..1."""
        self._loop = asyncio.get_running_loop()
        self._tokens: asyncio.Queue[int | None] = asyncio.Queue()
        self._left = threading.Event()

        def run(session: Session) -> Generation:
            if self._left.is_set():
                raise Left
            session.look(grey)
            return session.ask_ids(text, max_tokens, self._on_token)

        self._future: Future[Generation] = pipeline.submit(run)
        self._future.add_done_callback(lambda _: self._post(None))

    async def token(self) -> int | None:
        """The next one; None at the end. Raises what the engine raised."""
        token = await self._tokens.get()
        if token is None:
            self._future.result()
        return token

    async def end(self) -> None:
        """Waits for the whole answer. Raises what the engine raised."""
        while await self.token() is not None:
            pass

    def result(self) -> Generation:
        """The whole answer, once the tokens have ended."""
        return self._future.result()

    def leave(self) -> None:
        """Nobody waits any more: end it, or do not begin."""
        self._left.set()
        self._future.cancel()

    def _on_token(self, token: int) -> None:
        if self._left.is_set():
            raise Left
        self._post(token)

    def _post(self, token: int | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads
            self._loop.call_soon_threadsafe(self._tokens.put_nowait, token)


class TextStream:
    """Tokens -> text piece by piece; all pieces together are the text of all tokens.

    Tokens are bytes of UTF-8: a character may take several, and is given out when it is complete.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []
        """Since the last boundary between tokens that is one between characters too."""

    def push(self, token: int) -> str:
        """What is certain now; empty in the middle of a character."""
        self._pending.append(token)
        text = self._tokenizer.decode(self._pending)
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._given(text)

    def end(self) -> str:
        """What never became a character."""
        return self._given(self._tokenizer.decode(self._pending) if self._pending else "")

    def _given(self, text: str) -> str:
        self._pending = []
        return text
