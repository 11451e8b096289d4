"""The small tokenizer against the whole Qwen2.5 vocabulary where that is at hand, and against BPE's own rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fusar_edge.data import tasks
from fusar_edge.model.tokenizer import SPECIAL_TOKENS, closed_subset, merged_from, tokenizer_from_ranks
from fusar_edge.recipes import shelf_folder

PATH = shelf_folder("export") / "fusar-tiny" / "tokenizer.json"


TOKENIZER = Tokenizer.from_file(str(PATH))


@given(st.text(max_size=80))
def test_every_text_survives_the_small_vocabulary(text: str) -> None:
    import unicodedata

    normal = unicodedata.normalize("NFC", text)
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == normal


def test_every_merge_joins_tokens_that_are_kept() -> None:
    model = json.loads(PATH.read_text())["model"]
    vocabulary = model["vocab"]
    for left, right in model["merges"]:
        assert left in vocabulary
        assert right in vocabulary
        assert left + right in vocabulary


def test_special_tokens_follow_the_vocabulary_and_are_single() -> None:
    ids = [TOKENIZER.encode(token).ids for token in SPECIAL_TOKENS]
    assert all(len(found) == 1 for found in ids)
    assert min(i for (i,) in ids) == TOKENIZER.get_vocab_size() - len(SPECIAL_TOKENS)


def test_digits_are_single_tokens_as_in_qwen() -> None:
    assert len(TOKENIZER.encode("504").ids) == 3


def test_prompts_are_short_in_the_small_vocabulary() -> None:
    assert len(TOKENIZER.encode(tasks.detect_prompt()).ids) <= 50
    assert len(TOKENIZER.encode(tasks.count_prompt()).ids) <= 16


def test_a_toy_vocabulary_closes_under_its_merges() -> None:
    ranks = {bytes([b]): b for b in range(256)} | {b"ab": 256, b"cd": 257, b"abcd": 258, b"xy": 259}
    assert merged_from(b"abcd", ranks) == (b"ab", b"cd")
    subset = closed_subset(ranks, 0, [b"abcd"])
    assert set(subset) == {bytes([b]) for b in range(256)} | {b"ab", b"cd", b"abcd"}
    assert tokenizer_from_ranks(subset).encode("abcd").tokens == ["abcd"]


def test_the_small_vocabulary_equals_the_whole_one_on_prompts() -> None:
    dashscope = pytest.importorskip("dashscope", reason="PyPI's dashscope, which ships qwen.tiktoken, is not installed")
    from fusar_edge.model.tokenizer import read_ranks

    whole = tokenizer_from_ranks(read_ranks(Path(dashscope.__file__).parent / "resources" / "qwen.tiktoken"))
    for text in (tasks.detect_prompt(), tasks.grid_prompt(), tasks.caption_prompt()):
        assert TOKENIZER.encode(text).tokens == whole.encode(text).tokens
