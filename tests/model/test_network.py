"""The network against second implementations: Hugging Face's modules, and REFERENCE section 1 written in NumPy."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_model import SMALL_RECIPE, TOKENS, random_model
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.model.tlm import TokenModulation
from fusar_edge.model.vision import FixedGridVision, hf_patches_from_grey
from fusar_edge.runtime.positions import mrope_positions
from fusar_edge.specs import ModelRecipe

Array = npt.NDArray[Any]
BEFORE, AFTER = 4, 9


@pytest.fixture(scope="module")
def recipe() -> ModelRecipe:
    return msgspec.toml.decode(SMALL_RECIPE, type=ModelRecipe)


@pytest.fixture(scope="module")
def model(recipe: ModelRecipe) -> FusarForConditionalGeneration:
    return random_model(recipe)


def grey(batch: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(seed))


def batch_of_two(cells: int) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids [2, N] with one image each, and position_ids [3, 2, N]."""
    ids = torch.randint(0, 120, (2, BEFORE + cells**2 + AFTER), generator=torch.Generator().manual_seed(1))
    ids[:, BEFORE - 1] = TOKENS["vision_start"]
    ids[:, BEFORE : BEFORE + cells**2] = TOKENS["image"]
    ids[:, BEFORE + cells**2] = TOKENS["vision_end"]
    positions = torch.from_numpy(mrope_positions(BEFORE, cells, AFTER))[:, None].expand(-1, 2, -1)
    return ids, positions


def hugging_face_logits(model: FusarForConditionalGeneration, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Hugging Face's own forward: its tower, its positions."""
    patches, grid = hf_patches_from_grey(pixels)
    model.model.rope_deltas = None
    forward = Qwen2_5_VLForConditionalGeneration.forward
    return forward(model, input_ids=ids, pixel_values=patches, image_grid_thw=grid, use_cache=False).logits


# Vision -------------------------------------------------------------------------------------------------------------


def test_patches_of_a_grey_image_are_those_of_hugging_faces_processor() -> None:
    pixels = (grey(2, 84) * 255).round().to(torch.uint8)
    images = list(pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())
    found = Qwen2VLImageProcessor(do_resize=False)(images, return_tensors="pt")
    values, grid = hf_patches_from_grey(pixels.float() / 255)
    torch.testing.assert_close(values, found["pixel_values"], atol=2e-6, rtol=0)
    assert grid.tolist() == found["image_grid_thw"].tolist()


@pytest.mark.parametrize(("size", "window"), [(140, 56), (252, 84), (504, 112)])
def test_the_fixed_grid_tower_agrees_with_hugging_faces(recipe: ModelRecipe, size: int, window: int) -> None:
    assert recipe.vision is not None
    vision = msgspec.structs.replace(recipe.vision, window_size=window, hidden_size=16, intermediate_size=16)
    tower = random_model(msgspec.structs.replace(recipe, vision=vision, image_size=size)).model.visual
    pixels = grey(2, size)
    with torch.no_grad():
        reference = tower(*hf_patches_from_grey(pixels)).reshape(2, (size // 28) ** 2, -1)
        found = FixedGridVision(tower, size)(pixels)
    torch.testing.assert_close(found, reference, atol=2e-5, rtol=1e-4)


def test_504_pixels_make_sixteen_whole_windows_eight_of_half_and_one_of_a_quarter(recipe: ModelRecipe) -> None:
    assert recipe.vision is not None
    vision = msgspec.structs.replace(recipe.vision, window_size=112)
    tower = random_model(msgspec.structs.replace(recipe, vision=vision, image_size=504)).model.visual
    assert FixedGridVision(tower, 504).window_groups == ((16, 64), (8, 32), (1, 16))


def test_an_image_size_off_the_grid_is_refused(model: FusarForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match="150 is not a multiple of 28"):
        FixedGridVision(model.model.visual, 150)


# TLM ----------------------------------------------------------------------------------------------------------------


def tlm_in_numpy(tokens: Array, anchors: Array, positions: Array, mask: Array, weights: dict[str, Array]) -> Array:
    """REFERENCE section 1, one image: tokens [T, C], anchors [S, 64], positions [S, 2], mask [S]; 64-bit."""
    channels, merged = tokens.shape[1], round(len(tokens) ** 0.5)
    patches, sigma = 2 * merged, 2.0
    hidden = anchors @ weights["0.weight"].T + weights["0.bias"]
    film = (hidden / (1 + np.exp(-hidden))) @ weights["2.weight"].T + weights["2.bias"]
    share = np.zeros((len(anchors), patches, patches))
    for i, (y, x) in enumerate(positions):
        for r in range(patches):
            for c in range(patches):
                squared = (y * (patches - 1) - r) ** 2 + (x * (patches - 1) - c) ** 2
                share[i, r, c] = np.exp(-squared / (2 * sigma**2))
    share /= share.sum(0) + 1e-6
    share *= mask[:, None, None]
    share /= share.sum(0) + 1e-6
    fields = np.einsum("sk,src->rck", film, share)
    # Bilinear, align_corners False, from 2m to m: the centre of a cell lies between four patches, a quarter of each.
    fields = fields.reshape(merged, 2, merged, 2, 2 * channels).mean((1, 3)).reshape(-1, 2 * channels)
    return tokens * (1 + fields[:, :channels]) + fields[:, channels:]


def tlm_inputs(batch: int, cells: int, channels: int, anchors: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(anchors)
    tokens = torch.randn(batch, cells**2, channels, generator=generator)
    vectors = torch.nn.functional.normalize(torch.randn(batch, anchors, 64, generator=generator), dim=-1)
    positions = torch.rand(batch, anchors, 2, generator=generator)
    mask = (torch.rand(batch, anchors, generator=generator) < 0.6).float()
    return tokens, vectors, positions, mask


@pytest.mark.parametrize("anchors", [1, 12])
def test_tlm_agrees_with_the_reference_written_in_numpy(anchors: int) -> None:
    torch.manual_seed(0)
    tlm = TokenModulation(channels=6, patches=10, merged=5)
    inputs = tlm_inputs(3, 5, 6, anchors)
    weights = {name: value.double().numpy() for name, value in tlm.film_mlp.state_dict().items()}
    with torch.no_grad():
        found = tlm(*inputs).numpy()
    for image in range(3):
        arrays = (value[image].double().numpy() for value in inputs)
        np.testing.assert_allclose(found[image], tlm_in_numpy(*arrays, weights), atol=2e-6)


def test_the_modulation_is_wide_as_the_official_one_and_has_its_names() -> None:
    assert {k: tuple(v.shape) for k, v in TokenModulation(48, 10, 5).film_mlp.state_dict().items()} == {
        "0.weight": (192, 64), "0.bias": (192,), "2.weight": (96, 192), "2.bias": (96,),
    }  # fmt: skip
    assert TokenModulation(8, 10, 5).film_mlp[0].out_features == 128


def test_masked_anchors_count_for_nothing_wherever_and_whatever_they_are() -> None:
    tlm = TokenModulation(channels=6, patches=10, merged=5)
    tokens, vectors, positions, mask = tlm_inputs(2, 5, 6, 12)
    with torch.no_grad():
        found = tlm(tokens, vectors, positions, mask)
        other = torch.where(mask[..., None] > 0, vectors, 7.0 * vectors.flip(-1))
        torch.testing.assert_close(tlm(tokens, other, positions, mask), found, rtol=0, atol=0)
        none = tlm(tokens, vectors, positions, torch.zeros_like(mask))
        assert torch.equal(none, tokens)
    assert not torch.allclose(found, tokens, atol=1e-3)


def test_without_anchors_the_tokens_are_plain_qwen_bit_for_bit(model: FusarForConditionalGeneration) -> None:
    pixels = grey(2, 140)
    _, vectors, positions, mask = tlm_inputs(2, 5, 64, 9)
    with torch.no_grad():
        plain = model.visual_tokens(pixels)
        assert torch.equal(model.visual_tokens(pixels, vectors, positions, torch.zeros_like(mask)), plain)
        assert not torch.allclose(model.visual_tokens(pixels, vectors, positions, mask), plain, atol=1e-2)


# The whole ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 5, 18])
def test_positions_are_those_of_hugging_face(model: FusarForConditionalGeneration, cells: int) -> None:
    ids, positions = batch_of_two(cells)
    grid = torch.tensor([[1, 2 * cells, 2 * cells]] * 2)
    reference, _ = model.model.get_rope_index(ids, image_grid_thw=grid)
    assert torch.equal(positions, reference)


def test_logits_without_anchors_are_those_of_hugging_faces_forward(model: FusarForConditionalGeneration) -> None:
    pixels, (ids, positions) = grey(2, 140), batch_of_two(5)
    with torch.no_grad():
        found = model(ids, pixels, positions)
        torch.testing.assert_close(found.logits, hugging_face_logits(model, ids, pixels), atol=1e-4, rtol=1e-4)
    assert found.visual_tokens.shape == (2, 25, 64)


def test_the_loss_is_the_cross_entropy_of_the_answer_alone(model: FusarForConditionalGeneration) -> None:
    pixels, (ids, positions) = grey(2, 140), batch_of_two(5)
    labels = torch.full_like(ids, -100)
    labels[0, -3:], labels[1, -2:] = ids[0, -3:], ids[1, -2:]
    with torch.no_grad():
        logits = hugging_face_logits(model, ids, pixels).double().log_softmax(-1)
        found = model(ids, pixels, positions, labels=labels)
    places = [(0, -3), (0, -2), (0, -1), (1, -2), (1, -1)]
    expected = -np.mean([float(logits[b, n - 1, ids[b, n]]) for b, n in places])
    assert float(found.loss) == pytest.approx(expected, rel=1e-5)
    assert found.logits.shape == (5, 128)


def test_padding_on_the_right_changes_nothing_before_it(model: FusarForConditionalGeneration) -> None:
    pixels, (ids, positions) = grey(2, 140), batch_of_two(5)
    padded_ids = torch.nn.functional.pad(ids, (0, 6), value=TOKENS["bos"])
    padded_positions = torch.nn.functional.pad(positions, (0, 6), value=3)
    with torch.no_grad():
        found = model(padded_ids, pixels, padded_positions).logits[:, : ids.shape[1]]
        torch.testing.assert_close(found, model(ids, pixels, positions).logits, atol=1e-5, rtol=1e-5)


def test_the_model_says_its_cells_and_keeps_its_settings_in_its_config(
    model: FusarForConditionalGeneration, tmp_path: Any
) -> None:
    assert model.cells == 5
    model.save_pretrained(tmp_path)
    again = FusarForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert again.config.fusar == {"image_size": 140, "sigma": 2.0, "hidden_mult": 4}
    pixels = grey(1, 140)
    _, vectors, positions, mask = tlm_inputs(1, 5, 64, 9)
    with torch.no_grad():
        tokens = [m.visual_tokens(pixels, vectors, positions, mask) for m in (model, again)]
    assert torch.equal(*tokens)
