"""Does a bundle say what Hugging Face says of the same checkpoint? One tile, its question, 16 tokens, teacher-forced.

    python tools/full_size/agreement.py reference RECIPE --checkpoint C --data M.jsonl --out reference.npz
    python tools/full_size/agreement.py bundle BUNDLE --reference reference.npz

The first runs transformers' own forward in float32, one layer in memory at a time; the second the bundle, as the
service does: look, prefill, token by token. Two processes, so that each has its own peak of memory. One JSON line each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from fusar_edge.bench.machine import peak_memory_mib
from fusar_edge.manifest import package_versions

TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("reference")
    verb.add_argument("recipe")
    verb.add_argument("--checkpoint", required=True)
    verb.add_argument("--sigma", type=float)
    verb.add_argument("--data", type=Path, required=True, help="the first record is asked")
    verb.add_argument("--out", type=Path, required=True)
    verb.set_defaults(run=reference)
    verb = verbs.add_parser("bundle")
    verb.add_argument("bundle", type=Path)
    verb.add_argument("--reference", type=Path, required=True)
    verb.add_argument("--threads", type=int, default=0)
    verb.set_defaults(run=bundle)
    given = parser.parse_args()
    print(json.dumps(given.run(given)))


def reference(given: argparse.Namespace) -> dict[str, Any]:
    import torch
    from tokenizers import Tokenizer

    from fusar_edge.data.chat import AFTER_IMAGE, AFTER_QUESTION, BEFORE_IMAGE
    from fusar_edge.data.triplets import read_triplets
    from fusar_edge.export.lean.hugging_face import reference as hugging_face
    from fusar_edge.export.lean.modules import Layers
    from fusar_edge.model.weights import open_weights
    from fusar_edge.recipes import load_recipe
    from fusar_edge.runtime.generate import Prefix
    from fusar_edge.sar.image import grey_from_file, resized
    from fusar_edge.sar.radiometry import DEFAULT_RADIOMETRY
    from fusar_edge.specs import ModelRecipe

    started = time.monotonic()
    recipe, _ = load_recipe("export", given.recipe, ModelRecipe)
    weights = open_weights(given.checkpoint, recipe, sigma=given.sigma)
    triplet = next(iter(read_triplets(given.data)))
    words = Tokenizer.from_file(str(weights.tokenizer))

    def ids(text: str) -> list[int]:
        return list(words.encode(text, add_special_tokens=False).ids)

    cells = recipe.image_size // 28
    prefix = Prefix(tuple(ids(BEFORE_IMAGE)), cells, weights.config.image_token_id, tuple(ids(AFTER_IMAGE)))
    prompt = [*prefix.ids.tolist(), *ids(triplet.question + AFTER_QUESTION)]
    forced = (ids(triplet.answer) * TOKENS)[:TOKENS]  # a short answer again and again: any text will do
    text = np.array([*prompt, *forced], np.int32)
    pixels = resized(grey_from_file(triplet.image, DEFAULT_RADIOMETRY), recipe.image_size)[None, None]
    with torch.inference_mode():
        tokens, logits = hugging_face(
            Layers(weights), torch.from_numpy(pixels), torch.from_numpy(text[None]), TOKENS + 1
        )
    index = np.full(len(text), -1, np.int32)
    index[: len(prefix)] = prefix.visual_index
    np.savez(
        given.out,
        pixels=pixels.astype(np.float32),
        ids=text,
        index=index,
        positions=prefix.positions(len(text)),
        prompt=len(prompt),
        visual=tokens.numpy(),
        logits=logits.numpy(),
    )
    return {
        "prompt_tokens": len(prompt),
        "seconds": round(time.monotonic() - started, 1),
        "peak_mib": peak_memory_mib(),
        "packages": package_versions("torch", "transformers"),
    }


def bundle(given: argparse.Namespace) -> dict[str, Any]:
    from fusar_edge.calib.compare import cosine, divergence, norm_ratio
    from fusar_edge.runtime.backend import open_backend
    from fusar_edge.runtime.bundle import open_bundle

    with np.load(given.reference) as stored:
        wanted = dict(stored)
    started = time.monotonic()
    opened = open_bundle(given.bundle)
    backend = open_backend(opened, given.threads)
    times = {"open": time.monotonic() - started}
    bands = opened.settings.anchors.bands
    none = (np.zeros((1, 1, *rest), np.float32) for rest in ((bands,), (2,), ()))
    started = time.monotonic()
    visual = backend.vision(wanted["pixels"], *none)
    times["vision"] = time.monotonic() - started
    cache, prompt = backend.new_cache(opened.settings.context_tokens), int(wanted["prompt"])
    spans = [slice(0, prompt), *(slice(i, i + 1) for i in range(prompt, len(wanted["ids"])))]
    logits, steps = [], []
    for span in spans:
        started = time.monotonic()
        step = backend.step(
            cache,
            wanted["ids"][None, span],
            visual,
            wanted["index"][None, span],
            np.ascontiguousarray(wanted["positions"][:, None, span]),
        )
        steps.append(time.monotonic() - started)
        logits.append(step.logits[0].copy())
    pairs = list(zip(logits, wanted["logits"], strict=True))
    return {
        "precision": opened.settings.precision,
        "vision_cosine": cosine(visual, wanted["visual"]),
        "vision_norm_ratio": norm_ratio(visual, wanted["visual"]),
        "logits_cosine": float(np.mean([cosine(a, b) for a, b in pairs])),
        "logits_cosine_least": min(cosine(a, b) for a, b in pairs),
        "logits_norm_ratio": float(np.mean([norm_ratio(a, b) for a, b in pairs])),
        "logits_kl": float(np.mean([divergence(b, a) for a, b in pairs])),
        "token_agreement": float(np.mean([a.argmax() == b.argmax() for a, b in pairs])),
        "tokens": len(pairs),
        "seconds": {k: round(v, 2) for k, v in times.items()}
        | {"prefill": round(steps[0], 2), "token": round(float(np.median(steps[1:])), 3)},
        "prompt_tokens": prompt,
        "peak_mib": peak_memory_mib(),
        "packages": package_versions("onnxruntime", "numpy"),
    }


if __name__ == "__main__":
    main()
