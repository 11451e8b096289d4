"""Questions that share a prefix are what they would be alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_data import RECIPE
from transformers import Qwen2_5_VLConfig

from fusar_edge.data import chat
from fusar_edge.model.checkpoint import new_model
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.recipes import shelf_folder
from fusar_edge.specs import ModelRecipe
from fusar_edge.train.sequences import IGNORED, SequenceWriter

TOKENIZER = shelf_folder("export") / "fusar-tiny" / "tokenizer.json"
QUESTIONS = [("How many?", "3"), ("Where is it?", "1, 2"), ("Boxes?", "None")]


@pytest.fixture(scope="module")
def model() -> FusarForConditionalGeneration:
    import msgspec

    recipe = msgspec.toml.decode(RECIPE.replace("READING", "paper"), type=ModelRecipe)
    return new_model(recipe, TOKENIZER).eval()


@pytest.fixture(scope="module")
def writer(model: FusarForConditionalGeneration) -> SequenceWriter:
    return SequenceWriter(TOKENIZER, model.cells)


def test_questions_asked_together_get_the_logits_they_get_alone(
    model: FusarForConditionalGeneration, writer: SequenceWriter
) -> None:
    pixels = torch.rand(1, 1, 84, 84, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = model(pixels=pixels, **writer.batch([writer.sequence(QUESTIONS)])).logits
        alone = [model(pixels=pixels, **writer.batch([writer.sequence([q])])).logits for q in QUESTIONS]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_labels_stand_on_answers_only(writer: SequenceWriter) -> None:
    sequence = writer.sequence(QUESTIONS)
    learned = writer.tokenizer.decode(sequence.ids[sequence.labels != IGNORED].tolist(), skip_special_tokens=False)
    assert learned == "".join(answer + chat.END for _, answer in QUESTIONS)


def test_a_question_beyond_the_limit_is_left_out_whole(writer: SequenceWriter) -> None:
    one = writer.sequence(QUESTIONS[:1])
    assert np.array_equal(writer.sequence(QUESTIONS, limit=len(one.ids)).ids, one.ids)


def test_positions_are_hugging_faces(model: FusarForConditionalGeneration, writer: SequenceWriter) -> None:
    assert isinstance(model.config, Qwen2_5_VLConfig)
    sequence = writer.sequence(QUESTIONS[:1])
    patches = model.cells * 2
    ids = torch.from_numpy(sequence.ids)[None]
    expected, _ = model.model.get_rope_index(ids, image_grid_thw=torch.tensor([[1, patches, patches]]))
    assert np.array_equal(sequence.positions, expected[:, 0].numpy())
