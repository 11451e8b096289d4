"""/v1/chat/completions: the real client of OpenAI against a real server and the default bundle."""

from __future__ import annotations

import base64
import io
import json
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

import httpx
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from malformed_files import geotiff
from PIL import Image
from served_app import served
from service_parts import ask, make_parts, settings_for

from fusar_edge.errors import BusyError
from fusar_edge.runtime.bundle import TOKENIZER, Bundle, bundle_path
from fusar_edge.runtime.generate import Generation
from fusar_edge.runtime.session import Session
from fusar_edge.runtime.tokenizer import Tokenizer
from fusar_edge.service.http.app import make_app
from fusar_edge.service.http.chat_answer import TextStream
from fusar_edge.service.http.chat_image import grey_from_data_url
from fusar_edge.service.intake.probe import Prober
from fusar_edge.service.pipeline import Pipeline
from fusar_edge.service.settings import HttpSettings, ModelSettings, TriageSettings

MODEL = "fusar-tiny"
T = TypeVar("T")
QUESTION = "How many ship targets are in this SAR image? Answer with one number."
SPECKLE = np.random.default_rng(5).gamma(4.0, 0.01, (252, 252)).astype(np.float32)
LEVELS = (np.sqrt(SPECKLE) * 255).astype(np.uint8)


def data_url(picture: Any, kind: str = "PNG", media_type: str = "image/png") -> str:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, kind, quality=95)
    return f"data:{media_type};base64,{base64.b64encode(out.getvalue()).decode()}"


PNG = data_url(LEVELS)


def tiff_url(data: bytes) -> str:
    return f"data:image/tiff;base64,{base64.b64encode(data).decode()}"


def messages(url: str = PNG, text: str = QUESTION) -> list[Any]:
    return [
        {"role": "user", "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]}
    ]


class Counted(Pipeline):
    """Counts what it is asked."""

    asked = 0
    busy = False

    def submit(self, job: Callable[[Session], T]) -> Future[T]:
        if self.busy:
            raise BusyError("8 questions wait already; ask again in a few seconds", 5.0)
        self.asked += 1
        return super().submit(job)


def one_engine(parts: Any, session: Any) -> Counted:
    """A pipeline over one session, started."""
    model, triage = ModelSettings(workers=1), TriageSettings()
    pipeline = Counted(parts.bundle, parts.journal, model, triage, open_session=lambda: session)
    pipeline.start()
    return pipeline


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Session:
    return Session(bundle, 1)


@pytest.fixture(scope="module")
def service(
    bundle: Bundle, session: Session, prober: Prober, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    parts = make_parts(bundle, settings_for(tmp_path_factory.mktemp("chat"), http=HttpSettings(port=0)), prober)
    parts.pipeline = one_engine(parts, session)
    yield parts
    parts.pipeline.stop()
    parts.journal.close()


@pytest.fixture(scope="module")
def openai_client(service: Any) -> Iterator[openai.OpenAI]:
    with (
        served(make_app(service), service) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened,
    ):
        yield opened


@pytest.fixture(scope="module")
def expected(bundle: Bundle, session: Session) -> str:
    """What the bundle says to the same pixels without any service."""
    session.look(LEVELS.astype(np.float32) / np.float32(255))
    return session.ask("count", question=QUESTION).parsed.text


def test_the_client_of_openai_gets_the_models_own_answer(openai_client: openai.OpenAI, expected: str) -> None:
    said = openai_client.chat.completions.create(model=MODEL, messages=messages(), temperature=0, max_tokens=8)
    choice = said.choices[0]
    assert choice.message.content == expected
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert said.model == MODEL
    assert said.usage is not None
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens
    assert said.usage.prompt_tokens > 81


def test_streamed_pieces_are_the_whole_answer(openai_client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": messages(text="Describe this SAR image in eight fields.")}
    whole = openai_client.chat.completions.create(**asked, max_completion_tokens=40)
    stream = openai_client.chat.completions.create(
        **asked, max_completion_tokens=40, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert len(pieces) > 3
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({c.id for c in chunks}) == 1


def test_an_answer_that_max_tokens_cuts_says_so(openai_client: openai.OpenAI) -> None:
    text = "Describe this SAR image in eight fields."
    said = openai_client.chat.completions.create(model=MODEL, messages=messages(text=text), max_tokens=3)
    assert said.choices[0].finish_reason == "length"
    assert said.usage is not None
    assert said.usage.completion_tokens == 3


def test_models_are_listed_and_found_by_id(openai_client: openai.OpenAI) -> None:
    assert [m.id for m in openai_client.models.list()] == [MODEL]
    assert openai_client.models.retrieve(MODEL).owned_by == "fusar-edge"
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("gpt-4o")


def test_options_that_change_nothing_pass(openai_client: openai.OpenAI, expected: str) -> None:
    said = openai_client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "You are a helpful assistant."}, *messages()],
        temperature=0,
        top_p=0.5,
        n=1,
        seed=7,
        stop=[],
        presence_penalty=0,
        frequency_penalty=0,
        logprobs=False,
        response_format={"type": "text"},
        user="someone",
        store=False,
    )
    assert said.choices[0].message.content == expected


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 0.7}, "temperature"),
        ({"temperature": 1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 2}, "n"),
        ({"stop": ["."]}, "stop"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"extra_body": {"top_k": 3}}, "top_k"),
        ({"extra_body": {"max_tokens": "many"}}, "max_tokens"),
    ],
)
def test_an_option_that_cannot_be_had_is_refused_by_name(
    openai_client: openai.OpenAI, service: Any, options: dict[str, Any], param: str
) -> None:
    asked = service.pipeline.asked
    with pytest.raises(openai.BadRequestError) as refused:
        openai_client.chat.completions.create(model=MODEL, messages=messages(), **options)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert service.pipeline.asked == asked


IMAGE = {"type": "image_url", "image_url": {"url": PNG}}
TEXT = {"type": "text", "text": QUESTION}


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [{"role": "user", "content": QUESTION}],
        [{"role": "user", "content": [IMAGE]}],
        [{"role": "user", "content": [IMAGE, IMAGE, TEXT]}],
        [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": [IMAGE, TEXT]}],
        [{"role": "user", "content": [IMAGE, TEXT]}, {"role": "assistant", "content": "3"},
         {"role": "user", "content": "Are you sure?"}],
        [{"role": "assistant", "content": [IMAGE, TEXT]}],
        [{"role": "user", "content": [IMAGE, {"type": "input_audio", "input_audio": {}}]}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [IMAGE, {"type": "text", "text": " "}]}],
    ],
)  # fmt: skip
def test_a_conversation_that_the_model_cannot_hold_is_refused(openai_client: openai.OpenAI, turns: list[Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        openai_client.chat.completions.create(model=MODEL, messages=turns)
    assert "messages" in str(refused.value.param)


def test_another_model_is_not_found(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        openai_client.chat.completions.create(model="gpt-4o", messages=messages())
    assert refused.value.code == "model_not_found"


def test_a_question_that_leaves_no_room_is_refused_before_the_engine(
    openai_client: openai.OpenAI, service: Any
) -> None:
    asked = service.pipeline.asked
    for text in ("ship and port " * 600, "a" * 200_000):
        with pytest.raises(openai.BadRequestError) as refused:
            openai_client.chat.completions.create(model=MODEL, messages=messages(text=text))
        assert refused.value.code == "context_length_exceeded"
    assert service.pipeline.asked == asked


def bomb() -> str:
    """A small PNG whose header says 60,000 x 60,000."""
    data = bytearray(base64.b64decode(PNG.partition(",")[2]))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://example.com/a.png", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("/etc/passwd", "invalid_image_url"),
        ("data:image/png,abc", "invalid_image_url"),
        ("data:image/svg+xml;base64,PHN2Zz4=", "invalid_image_url"),
        ("data:image/png;base64,@@@", "invalid_image_url"),
        ("data:image/png;base64,", "invalid_image"),
        (PNG.replace("image/png", "image/jpeg"), "invalid_image"),
        (PNG.replace("image/png", "image/tiff"), "invalid_image"),
        (PNG[: len("data:image/png;base64,") + 4000], "invalid_image"),
        (bomb(), "image_too_large"),
        (data_url(np.zeros((4097, 4096), np.uint8)), "image_too_large"),
        (tiff_url(b"II*\0"), "invalid_image"),
        (tiff_url(geotiff(SPECKLE.astype(np.complex64))), "invalid_image"),
        (tiff_url(geotiff(np.zeros((4200, 4200), np.uint8), compress="deflate")), "image_too_large"),
        (data_url(LEVELS.astype(np.uint16)), "invalid_image"),
    ],
)
def test_an_image_that_cannot_be_taken_is_refused_and_leaves_nothing(
    openai_client: openai.OpenAI, service: Any, url: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        openai_client.chat.completions.create(model=MODEL, messages=messages(url))
    assert refused.value.code == code
    assert str(service.settings.data_dir) not in str(refused.value)
    assert "chat-" not in str(refused.value)
    assert not list(service.incoming.iterdir())


def test_png_and_tiff_of_the_same_backscatter_are_the_same_grey(service: Any) -> None:
    size = service.bundle.settings.image_size
    from_png = grey_from_data_url(PNG, service.intake, size)
    plain = grey_from_data_url(tiff_url(geotiff(LEVELS, nowhere=True)), service.intake, size)
    power = grey_from_data_url(tiff_url(geotiff(SPECKLE)), service.intake, size)
    assert from_png.shape == (size, size)
    np.testing.assert_array_equal(plain, from_png)
    np.testing.assert_allclose(power, np.sqrt(SPECKLE), atol=1e-6)
    jpeg = grey_from_data_url(data_url(LEVELS, "JPEG", "image/jpeg"), service.intake, size)
    assert np.abs(jpeg - from_png).mean() < 0.02
    wide = grey_from_data_url(data_url(np.full((30, 700), 51, np.uint8)), service.intake, size)
    np.testing.assert_allclose(wide, 0.2, atol=1e-6)
    assert not list(service.incoming.iterdir())


def test_when_too_many_questions_wait_the_client_is_told_when_to_ask_again(
    openai_client: openai.OpenAI, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.pipeline, "busy", True)
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as busy:
            openai_client.chat.completions.create(model=MODEL, messages=messages(), stream=stream)
        assert busy.value.response.headers["retry-after"] == "5"
        assert busy.value.code == "rate_limit_exceeded"


def test_an_engine_that_breaks_in_the_middle_is_an_error_for_the_client(
    openai_client: openai.OpenAI, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(question: str, most: int, on_token: Callable[[int], None]) -> Any:
        on_token(40)
        raise RuntimeError("the secret exploded")

    monkeypatch.setattr(session, "ask_ids", breaks)
    with pytest.raises(openai.APIError) as failed:
        list(openai_client.chat.completions.create(model=MODEL, messages=messages(), stream=True))
    assert "secret" not in str(failed.value)


def test_what_never_became_a_character_ends_the_stream(
    openai_client: openai.OpenAI, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tuple(default_tokenizer().encode_plain("a 船")[:-1])

    def cut(question: str, most: int, on_token: Callable[[int], None]) -> Generation:
        for token in ids:
            on_token(token)
        return Generation(ids, (0.0,) * len(ids), "max_new_tokens", 1.0, 1.0, len(ids) - 1)

    monkeypatch.setattr(session, "ask_ids", cut)
    asked: dict[str, Any] = {"model": MODEL, "messages": messages()}
    chunks = list(openai_client.chat.completions.create(**asked, stream=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == openai_client.chat.completions.create(**asked).choices[0].message.content
    assert text.endswith("\N{REPLACEMENT CHARACTER}")


def test_a_body_that_is_no_request_is_refused_in_openais_form(parts: Any) -> None:
    app = make_app(parts)

    for body in (b"", b"{", b"[]", b"\xff", b'"x"', b"[" * 100_000, b'{"model": 1}', b'{"model": "\xed\xa0\x80"}'):
        response = ask(app, "POST", "/v1/chat/completions", content=body)
        assert response.status_code == 400, body[:20]
        assert response.json()["error"]["type"] == "invalid_request_error"
    response = ask(app, "POST", "/v1/chat/completions", content=b" " * ((24 << 20) + 1))
    assert response.status_code == 413
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


class Endless:
    """A session that answers until it is stopped, and says when."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    def look(self, grey: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def ask_ids(self, text: str, most: int, on_token: Callable[[int], None]) -> Any:
        try:
            while True:
                on_token(40)
                self.begun.set()
        finally:
            self.ended.set()


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_ends_when_whoever_asked_has_left(parts_with: Callable[..., Any], stream: bool) -> None:
    endless, parts = Endless(), parts_with(http=HttpSettings(port=0))
    parts.pipeline = one_engine(parts, endless)
    body = {"model": MODEL, "messages": messages(), "stream": stream}
    with served(make_app(parts), parts) as url, httpx.Client(timeout=20) as http:
        if stream:
            with http.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                next(response.iter_bytes())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(f"{url}/v1/chat/completions", json=body, timeout=httpx.Timeout(20, read=0.3))
        assert endless.begun.wait(20)
        assert endless.ended.wait(20)
    parts.pipeline.stop()


def test_a_token_is_needed_to_ask_where_tokens_are(parts_with: Callable[..., Any]) -> None:
    parts = parts_with(http=HttpSettings(require_token=True))
    text, _ = parts.tokens.create("reader", ["read"])

    app, body = make_app(parts), {"model": MODEL, "messages": messages()}
    held = {"Authorization": f"Bearer {text}"}
    assert ask(app, "POST", "/v1/chat/completions", json=body).status_code == 401
    assert ask(app, "POST", "/v1/chat/completions", json=body, headers=held).status_code == 403
    assert ask(app, "GET", "/v1/models", headers=held).status_code == 200


@cache
def default_tokenizer() -> Tokenizer:
    return Tokenizer(bundle_path("default") / TOKENIZER)


@given(st.lists(st.integers(0, 4979), max_size=40))
def test_pieces_of_any_tokens_are_their_text(ids: list[int]) -> None:
    tokenizer = default_tokenizer()
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.end() == tokenizer.decode(ids)


def test_a_character_of_several_tokens_is_given_out_whole() -> None:
    tokenizer = default_tokenizer()
    text = "船 at 5°N, 🚢"
    ids = tokenizer.encode_plain(text)
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "" in pieces  # in the middle of a character


def test_the_openapi_document_knows_the_routes(parts: Any) -> None:
    schema = make_app(parts).openapi()
    assert {"400", "404", "413", "429"} <= set(schema["paths"]["/v1/chat/completions"]["post"]["responses"])
    assert json.dumps(schema)
