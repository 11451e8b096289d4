from __future__ import annotations

import numpy as np
import pytest
from fakes import CELLS, CHANNELS, DIM, END, HEADS, IMAGE, LAYERS, SIZE, VOCABULARY, Weights

from fusar_edge.errors import InputError
from fusar_edge.runtime.backend import open_backend
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.cache import KvCache
from fusar_edge.runtime.generate import Generation, Prefix, generate, run_prefix
from fusar_edge.runtime.ort import OrtBackend

PREFIX = Prefix((1, 2, 3), CELLS, IMAGE, (4,))
QUESTION = (10, 11, 12, 13)


def reference(weights: Weights, visual: np.ndarray, question: tuple[int, ...], tokens: int, eos: set[int]) -> tuple:
    """Greedy loop that runs the whole sequence again for each token: ids and log-probabilities."""
    ids, logs = [], []
    while True:
        sequence = np.concatenate([PREFIX.ids, question, ids]).astype(int)
        index = np.full(len(sequence), -1)
        index[len(PREFIX.before) : len(PREFIX.before) + CELLS**2] = range(CELLS**2)
        logits = weights.logits(sequence, visual, index, PREFIX.positions(len(sequence))).astype(np.float64)
        token = int(logits.argmax())
        logs.append(float(logits[token] - np.logaddexp.reduce(logits)))
        if token in eos:
            return ids, logs
        ids.append(token)
        if len(ids) == tokens:
            return ids, logs


@pytest.fixture(scope="module")
def backend(bundle: Bundle) -> OrtBackend:
    opened = open_backend(bundle, threads=1)
    assert isinstance(opened, OrtBackend)
    return opened


@pytest.fixture(scope="module")
def visual(backend: OrtBackend) -> np.ndarray:
    pixels = np.random.default_rng(5).random((1, 1, SIZE, SIZE), np.float32)
    nothing = np.zeros((1, 1, 64), np.float32), np.zeros((1, 1, 2), np.float32), np.zeros((1, 1), np.float32)
    return backend.vision(pixels, *nothing)


def answer(
    backend: OrtBackend, visual: np.ndarray, question: tuple, tokens: int = 20, capacity: int = 100
) -> Generation:
    cache = backend.new_cache(capacity)
    run_prefix(backend, cache, PREFIX, visual)
    return generate(backend, cache, PREFIX, visual, question, tokens, {END})


@pytest.mark.parametrize("question", [QUESTION, (7,), tuple(range(100, 140))])
def test_generation_with_cache_equals_a_loop_that_recomputes_everything(
    backend: OrtBackend, visual: np.ndarray, question: tuple
) -> None:
    got = answer(backend, visual, question)
    ids, logs = reference(Weights(), visual[0], question, 20, {END})
    assert list(got.ids) == ids
    np.testing.assert_allclose(got.log_probabilities, logs, rtol=1e-4, atol=1e-5)
    assert len(set(ids)) > 3  # the fake does not just repeat itself
    assert got.confidence == pytest.approx(np.exp(np.mean(logs)), rel=1e-4)


def test_a_second_question_on_the_kept_prefix_gets_the_answer_of_a_fresh_one(
    backend: OrtBackend, visual: np.ndarray
) -> None:
    cache = backend.new_cache(100)
    run_prefix(backend, cache, PREFIX, visual)
    generate(backend, cache, PREFIX, visual, (50, 51), 9, {END})
    assert cache.length == len(PREFIX)
    again = generate(backend, cache, PREFIX, visual, QUESTION, 20, {END})
    fresh = answer(backend, visual, QUESTION)
    assert again.ids == fresh.ids
    assert again.log_probabilities == fresh.log_probabilities


def test_prefill_in_one_run_equals_prefill_in_two(backend: OrtBackend, visual: np.ndarray) -> None:
    ids = np.concatenate([PREFIX.ids, QUESTION]).astype(np.int32)[None]
    index = np.concatenate([PREFIX.visual_index, np.full(len(QUESTION), -1)]).astype(np.int32)[None]
    positions = PREFIX.positions(ids.shape[1])[:, None]
    whole, parts = backend.new_cache(50), backend.new_cache(50)
    one = backend.step(whole, ids, visual, index, positions).logits.copy()
    for part in (slice(0, 4), slice(4, None)):
        two = backend.step(parts, ids[:, part], visual, index[:, part], positions[..., part]).logits
    np.testing.assert_allclose(one, two, atol=1e-5)
    np.testing.assert_allclose(whole.past(), parts.past(), atol=1e-6)


def test_new_keys_and_values_are_written_into_the_buffer_itself(backend: OrtBackend, visual: np.ndarray) -> None:
    cache = backend.new_cache(20)
    base, nbytes = cache.buffer.ctypes.data, cache.buffer.nbytes
    cache.buffer[:] = np.nan
    run_prefix(backend, cache, PREFIX, visual)
    bound = backend._binding.get_outputs()[2]
    assert bound.data_ptr() == base
    assert np.isfinite(cache.buffer[: len(PREFIX)]).all()
    assert np.isnan(cache.buffer[len(PREFIX) :]).all()
    one = np.array([[9]], np.int32)
    backend.step(cache, one, visual, -one // 9, np.full((3, 1, 1), 30, np.int32))
    bound = backend._binding.get_outputs()[2]
    assert bound.data_ptr() == base + len(PREFIX) * cache.buffer.strides[0]
    assert base <= bound.data_ptr() < base + nbytes
    assert list(bound.shape()) == [1, LAYERS, 2, 1, HEADS, DIM]


def test_an_answer_ends_at_the_end_token_and_does_not_hold_it(backend: OrtBackend, visual: np.ndarray) -> None:
    ids, _ = reference(Weights(), visual[0], QUESTION, 20, set())
    cache = backend.new_cache(100)
    run_prefix(backend, cache, PREFIX, visual)
    stop = next(i for i in range(2, 20) if ids[i] not in ids[:i])
    got = generate(backend, cache, PREFIX, visual, QUESTION, 20, {ids[stop]})
    assert (list(got.ids), got.stop_reason) == (ids[:stop], "eos")
    assert len(got.log_probabilities) == stop + 1


def test_an_answer_stops_at_max_new_tokens_or_where_the_context_ends(backend: OrtBackend, visual: np.ndarray) -> None:
    assert len((got := answer(backend, visual, QUESTION, tokens=5)).ids) == 5
    assert got.stop_reason == "max_new_tokens"
    full = answer(backend, visual, QUESTION, capacity=len(PREFIX) + len(QUESTION) + 3)
    assert full.stop_reason == "context_full"
    assert full.ids == answer(backend, visual, QUESTION).ids[:4]  # the last one needs no row


def test_a_question_that_does_not_fit_is_refused_and_the_prefix_stays(backend: OrtBackend, visual: np.ndarray) -> None:
    cache = backend.new_cache(12)
    run_prefix(backend, cache, PREFIX, visual)
    with pytest.raises(InputError, match="a question of 4 tokens leaves no room"):
        generate(backend, cache, PREFIX, visual, QUESTION, 5, {END})
    assert cache.length == len(PREFIX)


def test_positions_of_the_prefix_go_on_after_the_larger_side_of_the_image() -> None:
    assert PREFIX.positions(10).tolist() == [
        [0, 1, 2, 3, 3, 3, 3, 5, 6, 7],
        [0, 1, 2, 3, 3, 4, 4, 5, 6, 7],
        [0, 1, 2, 3, 4, 3, 4, 5, 6, 7],
    ]
    assert PREFIX.visual_index.tolist() == [-1, -1, -1, 0, 1, 2, 3, -1]
    assert len(PREFIX) == len(PREFIX.ids) == 8


def test_the_cache_gives_views_and_refuses_what_does_not_fit() -> None:
    cache = KvCache(4, (LAYERS, 2, 1, HEADS, DIM))
    assert cache.past().shape == (0, LAYERS, 2, 1, HEADS, DIM)
    cache.advance(3)
    assert np.shares_memory(cache.next_rows(1), cache.buffer)
    with pytest.raises(InputError, match="2 tokens after 3 do not fit the KV cache of 4"):
        cache.advance(2)
    with pytest.raises(ValueError, match="truncate"):
        cache.truncate(4)
    assert (cache.length, cache.room) == (3, 1)


def test_vision_of_the_graph_equals_the_oracle_with_and_without_anchors(backend: OrtBackend) -> None:
    r = np.random.default_rng(1)
    pixels = r.random((2, 1, SIZE, SIZE), np.float32)
    anchors, places = r.random((2, 5, 64), np.float32), r.random((2, 5, 2), np.float32)
    mask = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], np.float32)
    got = backend.vision(pixels, anchors, places, mask)
    assert got.shape == (2, CELLS**2, CHANNELS)
    np.testing.assert_allclose(got, Weights().vision(pixels, anchors, places, mask), rtol=1e-4, atol=1e-4)
    assert backend.settings.vocab_size == VOCABULARY
