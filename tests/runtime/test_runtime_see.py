"""Vision apart from the prefix: images seen in a batch, taken in one after the other; tokens heard as they come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import SIZE, ScriptedBackend

from fusar_edge.errors import InputError
from fusar_edge.runtime.bundle import DEFAULT, Bundle, open_bundle
from fusar_edge.runtime.session import SeenInput, Session


def anchors(count: int, seed: int, masked: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    mask = np.arange(count) >= masked
    vectors = rng.normal(size=(count, 64)).astype(np.float32) / 8 * mask[:, None]
    positions = rng.random((count, 2), np.float32)
    return {"anchors": SimpleNamespace(mask=mask, vectors=lambda: vectors), "positions": positions}


def images(size: int) -> list[SeenInput]:
    """Without anchors, with few, with more, and with masked ones."""
    greys = np.random.default_rng(1).random((4, size, size), np.float32)
    given: list[dict[str, Any]] = [{}, anchors(2, 1), anchors(5, 2), anchors(5, 3, masked=2)]
    return [SeenInput(grey, **more) for grey, more in zip(greys, given, strict=True)]


@pytest.mark.parametrize("which", ["fake", "default"])
def test_an_image_has_the_same_tokens_alone_and_in_a_batch(bundle: Bundle, which: str) -> None:
    if which == "default" and not (DEFAULT / "manifest.json").is_file():
        pytest.skip("this checkout holds no default bundle")
    session = Session(bundle if which == "fake" else open_bundle("default"), threads=1)
    seen = images(session.bundle.settings.image_size)
    together, alone = session.see(seen), [session.see([image])[0] for image in seen]
    scale = np.abs(alone).max()
    for one, other in zip(together, alone, strict=True):
        assert one.shape == other.shape == (1, session.bundle.settings.cells**2, session.bundle.settings.channels)
        np.testing.assert_allclose(one / scale, other / scale, rtol=0, atol=1e-4 if which == "default" else 1e-6)
    assert np.abs(together[1] - together[2]).max() > 0.01 * scale


def test_an_image_seen_before_is_taken_in_later_and_answers_as_if_looked_at(bundle: Bundle) -> None:
    session, (first, second, *_) = Session(bundle, threads=1), images(SIZE)

    def looked(image: SeenInput) -> tuple[int, ...]:
        session.look(image.grey, image.anchors, image.positions)
        return session.ask("caption").generation.ids

    expected = looked(first), looked(second)
    visual = session.see([first, second])
    said = []
    for tokens in reversed(visual):
        assert session.take(tokens) > 0
        said.append(session.ask("caption").generation.ids)
    assert (said[1], said[0]) == expected
    assert expected[0] != expected[1]


def test_a_batch_is_cut_where_the_plan_takes_no_more(bundle: Bundle) -> None:
    import dataclasses

    import msgspec

    from fusar_edge.runtime.bundle import PlanFacts

    plan = PlanFacts(
        tensorrt="10.3", compute_capability="8.7", gpu="Orin", prefill_tokens=512, vision_batch=3, kv_dtype="float16"
    )
    planned = dataclasses.replace(
        bundle, settings=msgspec.structs.replace(bundle.settings, engine="tensorrt", plan=plan)
    )
    backend = ScriptedBackend(bundle, lambda question, pixels: "")
    session = Session(planned, backend=backend, grammar=False)
    session.see(images(SIZE))
    assert [len(run["pixels"]) for run in backend.visions] == [3, 1]
    assert session.see([]) == []


def test_tokens_are_heard_as_they_are_chosen(bundle: Bundle) -> None:
    backend = ScriptedBackend(bundle, lambda question, pixels: "Sea.")
    session = Session(bundle, backend=backend, grammar=False)
    session.look(np.zeros((SIZE, SIZE), np.float32))
    heard: list[int] = []
    answer = session.ask("caption", on_token=heard.append)
    assert heard == list(answer.generation.ids) != []


def test_a_listener_that_has_heard_enough_ends_the_answer_and_the_next_one_is_whole(bundle: Bundle) -> None:
    session = Session(bundle, backend=ScriptedBackend(bundle, lambda question, pixels: "Sea."), grammar=False)
    session.look(np.zeros((SIZE, SIZE), np.float32))

    def enough(token: int) -> None:
        raise InputError("the client has gone")

    with pytest.raises(InputError, match="has gone"):
        session.ask("caption", on_token=enough)
    assert session.ask("caption").parsed.text == "Sea."


def test_closing_a_session_closes_a_backend_that_can_be_closed(bundle: Bundle) -> None:
    backend = ScriptedBackend(bundle, lambda question, pixels: "")
    Session(bundle, backend=backend, grammar=False).close()  # nothing to close
    closed: list[bool] = []
    backend.close = lambda: closed.append(True)  # type: ignore[attr-defined]
    Session(bundle, backend=backend, grammar=False).close()
    assert closed == [True]
