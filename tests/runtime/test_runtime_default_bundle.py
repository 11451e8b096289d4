"""On the bundle that is shipped: real graphs, real tokenizer."""

from __future__ import annotations

import numpy as np
import pytest

from fusar_edge.data import chat
from fusar_edge.data.tasks import canonical_prompt
from fusar_edge.runtime.bundle import DEFAULT, Bundle, open_bundle
from fusar_edge.runtime.session import Session


@pytest.fixture(scope="module")
def default() -> Bundle:
    if not (DEFAULT / "manifest.json").is_file():
        pytest.skip("this checkout holds no default bundle")
    return open_bundle("default")


@pytest.fixture(scope="module")
def session(default: Bundle) -> Session:
    size = default.settings.image_size
    opened = Session(default, threads=1)
    opened.look(np.random.default_rng(0).random((size, size), np.float32))
    return opened


def recomputed(session: Session, question: str, tokens: int) -> list[int]:
    """Greedy answer where each token is one run over the whole sequence: no prefix is kept, no cache is used."""
    ids = session.tokenizer.encode(chat.prompt_text(question, session.bundle.settings.cells**2))
    prompt = len(ids)
    while len(ids) < prompt + tokens:
        index = np.full(len(ids), -1, np.int32)
        index[: len(session.prefix)] = session.prefix.visual_index
        positions = session.prefix.positions(len(ids))[:, None]
        cache = session.backend.new_cache(len(ids))
        assert session._visual is not None
        step = session.backend.step(cache, np.array([ids], np.int32), session._visual, index[None], positions)
        if int(step.next_ids[0]) in session.bundle.settings.eos_ids:
            break
        ids.append(int(step.next_ids[0]))
    return ids[prompt:]


@pytest.mark.parametrize("task", ["count", "detect", "caption"])
def test_the_cached_answer_is_the_answer_of_the_whole_sequence(session: Session, task: str) -> None:
    question = canonical_prompt(task)
    assert list(session.ask_ids(question, 12).ids) == recomputed(session, question, 12)


def test_the_image_changes_the_answer_and_looking_again_brings_it_back(default: Bundle) -> None:
    session, size = Session(default, threads=1), default.settings.image_size
    bright = np.random.default_rng(1).random((size, size), np.float32)
    said = []
    for image in (bright, np.zeros_like(bright), bright):
        session.look(image)
        said.append(session.ask_ids(canonical_prompt("caption"), 16).log_probabilities)
    assert said[0] == said[2]
    assert said[0] != said[1]
