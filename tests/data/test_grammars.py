"""Grammars of answers: all that `tasks` writes is in them, and all that is in them is read."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusar_edge.data.grammars import answer_grammar, box_bound, may_follow
from fusar_edge.data.tasks import TASKS, detect_answer, fields_text, parse_answer
from fusar_edge.data.truth import CAPTION_FIELDS, COORDINATE_SIZE, Box, Target
from fusar_edge.runtime.bundle import DEFAULT, TOKENIZER, open_bundle
from fusar_edge.runtime.grammar import Grammars, Writing
from fusar_edge.runtime.tokenizer import Tokenizer

SIZE = COORDINATE_SIZE
WHOLE_BOX = re.compile(r'\[\d+, \d+, \d+, \d+\], "label": "[^"]*"}')
FIELDS = "Describe: " + ", ".join(CAPTION_FIELDS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    if not (DEFAULT / "manifest.json").is_file():
        pytest.skip("this checkout holds no default bundle")
    return Tokenizer(open_bundle("default").file(TOKENIZER))


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    settings = open_bundle("default").settings
    path = open_bundle("default").file(TOKENIZER)
    return Grammars(path, settings.vocab_size, settings.eos_ids, tokenizer.token)


EOS = 4982
VOCABULARY = 4992


def written(writing: Writing, ids: list[int]) -> tuple[int, bool]:
    """Have an answer written that wants these tokens; how many of them were forced, and whether it may end after."""
    at = forced = 0
    while True:
        ahead = writing.forced()
        assert ahead == ids[at : at + len(ahead)], "what is forced is how the tokenizer itself would say it"
        at, forced = at + len(ahead), forced + len(ahead)
        if writing.complete or at == len(ids):
            break
        token = writing.choose(one_hot(ids[at]))
        assert token == ids[at]
        writing.take([token])
        at += 1
    assert at == len(ids)
    return forced, writing.complete or writing.choose(one_hot(EOS)) == EOS


def one_hot(token: int) -> np.ndarray:
    logits = np.zeros(VOCABULARY, np.float32)
    logits[token] = 1.0
    return logits


def improvised(writing: Writing, seed: int, most: int = 400) -> list[int]:
    """What a model says that knows nothing: random logits, with a growing wish to end."""
    rng, ids = np.random.default_rng(seed), list[int]()
    while len(ids) < most:
        ids += writing.forced()
        if writing.complete:
            break
        logits = rng.normal(size=VOCABULARY).astype(np.float32)
        logits[EOS] += len(ids) / 20
        token = writing.choose(logits)
        if token == EOS:
            break
        writing.take([token])
        ids.append(token)
    return ids


def boxes() -> st.SearchStrategy[Box]:
    def box(values: tuple[int, int, int, int]) -> Box:
        x, y, w, h = values
        return (x, y, min(x + w, SIZE), min(y + h, SIZE))

    low, side = st.integers(0, SIZE - 1), st.integers(1, SIZE)
    return st.tuples(low, low, side, side).map(box)


labels = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(found=st.lists(boxes(), max_size=6), label=labels, known=st.booleans())
def test_every_detect_answer_is_in_its_grammar(
    grammars: Grammars, tokenizer: Tokenizer, found: list[Box], label: str, known: bool
) -> None:
    text = detect_answer([Target(box, label) for box in found])
    writing = grammars.begin(answer_grammar("detect", "", label if known else None, SIZE), SIZE)
    forced, may_end = written(writing, tokenizer.encode_plain(text))
    assert may_end
    assert forced >= 12 * len(found), "most of what is around the numbers leaves no choice"


@settings(max_examples=30, deadline=None)
@given(cells=st.sets(st.integers(1, 9)), count=st.integers(0, 999))
def test_every_count_and_every_set_of_cells_is_in_its_grammar(
    grammars: Grammars, tokenizer: Tokenizer, cells: set[int], count: int
) -> None:
    said = ", ".join(map(str, sorted(cells))) or "None"
    for task, text in (("grid", said), ("count", str(count))):
        writing = grammars.begin(answer_grammar(task, "", None, SIZE), SIZE)
        assert written(writing, tokenizer.encode_plain(text))[1]


@pytest.mark.parametrize("label", ["ship", "BMP-2", "a", "Fishing boat 12"])
def test_labels_are_in_the_grammar_of_classify(grammars: Grammars, tokenizer: Tokenizer, label: str) -> None:
    writing = grammars.begin(answer_grammar("classify", "", None, SIZE), SIZE)
    assert written(writing, tokenizer.encode_plain(label))[1]


def test_eight_fields_are_in_the_grammar_of_a_caption_that_asks_for_them(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    text = fields_text({name: f"Some {name.lower()}, of sorts." for name in CAPTION_FIELDS})
    writing = grammars.begin(answer_grammar("caption", FIELDS, None, SIZE), SIZE)
    forced, may_end = written(writing, tokenizer.encode_plain(text))
    assert may_end
    assert forced > 8


def tasks_and_questions() -> Iterator[tuple[str, str]]:
    yield from ((task, "") for task in TASKS)
    yield "caption", FIELDS


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("task", "question"), list(tasks_and_questions()))
def test_whatever_a_model_says_under_a_grammar_is_read(
    grammars: Grammars, tokenizer: Tokenizer, task: str, question: str, seed: int
) -> None:
    for label in ("ship", None):
        writing = grammars.begin(answer_grammar(task, question, label, SIZE), SIZE)
        ids = improvised(writing, seed)
        parsed = parse_answer(task, tokenizer.decode(ids))
        assert parsed.ok, parsed.text
        if task == "detect":
            assert len(parsed.value) == len(WHOLE_BOX.findall(parsed.text)), "every box has an area"
        if question:
            assert isinstance(parsed.value, dict) or len(ids) >= 400


@pytest.mark.parametrize(
    ("answer", "bound"),
    [
        ('[{"bbox_2d": [12, 300, ', ("", 13)),
        ('[{"bbox_2d": [12, 300, 4', ("4", 13)),
        ('[{"bbox_2d": [12, 300, 45, ', ("", 301)),
        ('[{"bbox_2d": [12, 300, 45, 31', ("31", 301)),
        ('[{"bbox_2d": [12, 30', None),
        ('[{"bbox_2d": [12, 300,', None),
        ('[{"bbox_2d": [12, 300, 45, 310], "label": "ship"}, {"bbox_2d": [7', None),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "ship"}, {"bbox_2d": [7, 9, 1', ("1", 8)),
        ("12, 13, 1", None),
    ],
)
def test_a_bound_holds_where_x2_or_y2_is_said(answer: str, bound: tuple[str, int] | None) -> None:
    assert box_bound(answer) == bound


@settings(max_examples=300, deadline=None)
@given(value=st.integers(0, 504), least=st.integers(1, 504), cut=st.integers(0, 3))
def test_digits_may_follow_where_some_number_in_bounds_begins_so(value: int, least: int, cut: int) -> None:
    digits, more = str(value)[:cut], str(value)[cut : cut + 1]
    if not more:
        assert may_follow(digits, ",", least, SIZE) == (int(digits) >= least)
        return
    begun = digits + more
    possible = any(str(n).startswith(begun) for n in range(least, SIZE + 1))
    assert may_follow(digits, more, least, SIZE) == possible
    assert may_follow(digits, more + "]", least, SIZE) == (int(begun) >= least)


def test_a_task_without_a_grammar_is_named() -> None:
    with pytest.raises(ValueError, match="'segment' is not one of"):
        answer_grammar("segment", "", None, SIZE)
