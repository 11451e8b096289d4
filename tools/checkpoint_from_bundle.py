#!/usr/bin/env python3
"""A bundle's weights -> a base checkpoint to go on training from.

    python tools/checkpoint_from_bundle.py default --recipe fusar-tiny --out warm
    fusar-edge train fusar-tiny --stage base --init warm --data ssdd/train.jsonl --out base

What a bundle holds is INT8: each weight comes back as the float that its code stands for.
For a bundle whose checkpoint is lost, as that of the first default bundle.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from fusar_edge.bench.peers.fp32_graph import fp32_models
from fusar_edge.bench.peers.weights import layer_weights, state_dict_from
from fusar_edge.calib.smoothquant.seams import untie_head
from fusar_edge.manifest import Manifest, folder_hashes, output_folder, package_versions, write_manifest
from fusar_edge.model import checkpoint
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.bundle import bundle_path, open_bundle
from fusar_edge.specs import ModelRecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--recipe", default="fusar-tiny")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    bundle = open_bundle(bundle_path(given.bundle))
    recipe, text = load_recipe("export", given.recipe, ModelRecipe)
    tokenizer = checkpoint.tokenizer_path(recipe, given.recipe)
    model = checkpoint.new_model(recipe, tokenizer)
    held = state_dict_from(*(layer_weights(graph) for graph in fp32_models(bundle)))
    head, embedding = held["lm_head.weight"], held["model.language_model.embed_tokens.weight"]
    if model.config.tie_word_embeddings and np.abs(head - embedding).max() <= np.abs(head).max() / 64:
        held["lm_head.weight"] = embedding  # FP16, finer than the INT8 head
    else:  # of a model of its own, or moved from the embedding by SmoothQuant
        untie_head(model)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in held.items()}, strict=True)
    with output_folder(given.out) as folder:
        checkpoint.save_model(model, tokenizer, folder)
        manifest = Manifest(
            stage="base",
            recipe=text,
            inputs={f"bundle/{bundle.settings.name}": bundle.sha256},
            files=folder_hashes(folder),
            packages=package_versions("torch", "transformers", "numpy"),
        )
        write_manifest(folder, manifest)
    print(f"{given.out}: base checkpoint of {bundle.folder}")


if __name__ == "__main__":
    main()
