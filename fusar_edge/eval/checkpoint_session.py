"""A PyTorch checkpoint behind the runtime's Backend, so that every precision is asked by the same code (workshop)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from fusar_edge.manifest import FILENAME, Manifest
from fusar_edge.model.checkpoint import OFFICIAL, checkpoint_weights, model_from, recipe_of
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.backend import Cache, Floats, Int32, Step
from fusar_edge.runtime.bundle import Bundle, BundleSettings, Prompts
from fusar_edge.runtime.session import Session
from fusar_edge.sar.radiometry import Radiometry
from fusar_edge.specs import ModelRecipe


class TorchCache:
    """Keys and values in a Hugging Face cache."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length, self.states = capacity, 0, DynamicCache()

    @property
    def room(self) -> int:
        return self.capacity - self.length

    def truncate(self, length: int) -> None:
        if length == 0:
            self.states = DynamicCache()
        else:
            self.states.crop(length)
        self.length = length


class TorchBackend:
    """Both graphs of a bundle, as the PyTorch modules they were exported from."""

    def __init__(self, model: FusarForConditionalGeneration) -> None:
        self.model = model

    @torch.inference_mode()
    def vision(self, pixels: Floats, anchors: Floats, positions: Floats, mask: Floats) -> NDArray[np.float32]:
        inputs = [torch.from_numpy(np.ascontiguousarray(x)).float() for x in (pixels, anchors, positions, mask)]
        tokens: NDArray[np.float32] = self.model.visual_tokens(*inputs).numpy()
        return tokens

    def new_cache(self, capacity: int) -> TorchCache:
        return TorchCache(capacity)

    @torch.inference_mode()
    def step(
        self, cache: Cache, input_ids: Int32, visual_tokens: Floats, visual_index: Int32, position_ids: Int32
    ) -> Step:
        assert isinstance(cache, TorchCache)
        ids, index = torch.from_numpy(input_ids).long(), torch.from_numpy(np.ascontiguousarray(visual_index)).long()
        embeds = self.model.get_input_embeddings()(ids)
        seen = torch.from_numpy(np.asarray(visual_tokens))[torch.arange(len(ids))[:, None], index.clamp(min=0)]
        embeds = torch.where((index >= 0)[..., None], seen, embeds)
        hidden = self.model.model.language_model(
            inputs_embeds=embeds,
            position_ids=torch.from_numpy(np.ascontiguousarray(position_ids)).long(),
            past_key_values=cache.states,
            use_cache=True,
        ).last_hidden_state
        cache.length += ids.shape[1]
        logits = self.model.lm_head(hidden[:, -1]).float().numpy()
        return Step(logits, logits.argmax(-1).astype(np.int32))


def open_checkpoint_session(
    checkpoint: str | Path, recipe: str | None = None, sigma: float | None = None, *, grammar: bool = True
) -> Session:
    """A session on any form of a checkpoint; float32. Without a recipe, on a folder that `fusar-edge train` wrote.

    `inputs` of its manifest are, beside those of the folder, the hashes of all files that decide the weights, under the
    names that an export of the checkpoint gives them. CheckpointError for what needs a recipe and has none.
    """
    from fusar_edge.export.settings import settings as exported_settings

    given, text = (None, "") if recipe is None else load_recipe("export", recipe, ModelRecipe)
    weights = checkpoint_weights(checkpoint, given, sigma=sigma)
    model = model_from(weights)
    used = given or recipe_of(Path(checkpoint))
    known = set(BundleSettings.__struct_fields__)
    wanted: dict[str, Any] = {k: v for k, v in exported_settings(model, used).items() if k in known}
    settings = msgspec.convert(wanted | {"precision": "fp32", "name": used.name}, BundleSettings)
    hashes = weights.hashes()
    manifest = weights.manifest or Manifest(stage=OFFICIAL, recipe=text)
    manifest = msgspec.structs.replace(manifest, inputs=manifest.inputs | hashes)
    bundle = Bundle(weights.tokenizer.parent, settings, Prompts(), Radiometry(), manifest, _identity(hashes))
    return Session(bundle, backend=TorchBackend(model), grammar=grammar)


def _identity(hashes: dict[str, str]) -> str:
    """SHA-256 of manifest.json, or where there is none of the names and hashes of all files."""
    for part in ("checkpoint", "adapter"):
        if found := hashes.get(f"{part}/{FILENAME}"):
            return found
    return hashlib.sha256(msgspec.json.encode(hashes, order="deterministic")).hexdigest()
