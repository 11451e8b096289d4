#!/usr/bin/env python3
"""The complete vision tower of the 7B at 504 x 504, once: PyTorch graph and ONNX Runtime against Hugging Face's tower.

    python tools/full_size/vision_tower.py [--base base7b]

32 blocks, float32, one speckled image, every anchor masked; without --base the weights that random_base.py would
write. The graph is the one that `export` writes, TLM included. Each stage is a process of its own, so that its peak of
memory is its own. Needs 4 GB of disk in --work while it runs. Prints one JSON line; exit 1 beyond export's bounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_base import random_tensor
from shapes import published_config
from transformers import Qwen2_5_VLConfig

from fusar_edge.errors import GateError
from fusar_edge.export.graph_file import write_graph
from fusar_edge.export.onnx_configs import FusarVisionOnnxConfig
from fusar_edge.export.parity import VISION_OUTPUTS, Gate, run_from_file, run_from_module, sample
from fusar_edge.export.vision_graph import VisionGraph
from fusar_edge.manifest import package_versions
from fusar_edge.model.network import FusarForConditionalGeneration, with_fusar
from fusar_edge.model.shards import open_shards
from fusar_edge.model.vision import hf_patches_from_grey
from fusar_edge.specs import ExportSpec

IMAGE_SIZE = 504
NO_DECODER = {"num_hidden_layers": 1, "max_window_layers": 1, "intermediate_size": 64, "vocab_size": 256}
PREFIX = "model.visual."


@dataclass(frozen=True)
class Job:
    like: str
    base: Path | None
    seed: int
    work: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="folder of safetensors with the hub's names")
    parser.add_argument("--like", choices=("7b", "3b", "small"), default="7b")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where the graph lies for a while (default: the system's)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        job = Job(given.like, given.base, given.seed, Path(work))
        report: dict[str, Any] = {
            "tower": given.like,
            "image_size": IMAGE_SIZE,
            "weights": given.base.name if given.base else f"random, seed {given.seed}",
            "threads": torch.get_num_threads(),
            "seconds": {},
            "peak_gb": {},
        }
        for stage in (in_pytorch, exported, in_onnxruntime):
            seconds, facts, peak_gb = alone(stage, job)
            report["seconds"] |= seconds
            report["peak_gb"][stage.__name__] = peak_gb
            report |= facts
        passed = compare(job, report)
    report["versions"] = package_versions("torch", "transformers", "onnx", "onnxruntime", "numpy")
    print(json.dumps(report))
    sys.exit(not passed)


def alone(stage: Callable[[Job], Any], job: Job) -> tuple[dict[str, float], dict[str, Any], float]:
    """Runs a stage in a fresh process: seconds, facts, its peak of memory."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        seconds, facts = pool.submit(stage, job).result()
        return seconds, facts, pool.submit(peak_gb).result()


def peak_gb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


# Stages -------------------------------------------------------------------------------------------------------------


def in_pytorch(job: Job) -> tuple[dict[str, float], dict[str, Any]]:
    """Hugging Face's tower and our graph on the same weights."""
    model = tower_model(job)
    values = inputs(model)
    patches, grid = hf_patches_from_grey(torch.from_numpy(values["pixels"]))
    start = time.perf_counter()
    with torch.no_grad():
        theirs = model.model.visual(patches, grid).numpy()[None]
    between = time.perf_counter()
    ours = run_from_module(VisionGraph(model).eval(), VISION_OUTPUTS)(values)["visual_tokens"]
    seconds = {"hugging_face": rounded(between - start), "pytorch": rounded(time.perf_counter() - between)}
    np.savez(job.work / "pytorch.npz", hugging_face=theirs, pytorch=ours)
    np.savez(job.work / "inputs.npz", **values)
    return seconds, {
        "parameters": sum(p.numel() for p in model.model.visual.parameters()),
        "blocks": len(model.model.visual.blocks),
        "tokens": list(theirs.shape[1:]),
        "tokens_rms": float(np.sqrt(np.mean(np.square(theirs, dtype=np.float64)))),
    }


def exported(job: Job) -> tuple[dict[str, float], dict[str, Any]]:
    vision = VisionGraph(tower_model(job)).eval()
    start = time.perf_counter()
    write_graph(vision, FusarVisionOnnxConfig(vision.config), job.work / "vision.onnx")
    size = sum(path.stat().st_size for path in job.work.glob("vision.onnx*"))
    return {"export": rounded(time.perf_counter() - start)}, {"graph_bytes": size}


def in_onnxruntime(job: Job) -> tuple[dict[str, float], dict[str, Any]]:
    start = time.perf_counter()
    run = run_from_file(job.work / "vision.onnx")
    opened = time.perf_counter()
    tokens = run(dict(np.load(job.work / "inputs.npz")))["visual_tokens"]
    seconds = {"onnxruntime_open": rounded(opened - start), "onnxruntime": rounded(time.perf_counter() - opened)}
    np.savez(job.work / "onnxruntime.npz", onnxruntime=tokens)
    return seconds, {}


def compare(job: Job, report: dict[str, Any]) -> bool:
    """Adds the figures, and says whether all are within export's bounds."""
    found = {**np.load(job.work / "pytorch.npz"), **np.load(job.work / "onnxruntime.npz")}
    passed = True
    for name, reference in (("pytorch", "hugging_face"), ("onnxruntime", "hugging_face"), ("onnxruntime", "pytorch")):
        gate = Gate(ExportSpec(), f"{name} against {reference}")
        try:
            gate.check("tokens", found[reference], found[name])
        except GateError as problem:
            print(f"vision_tower: {problem}", file=sys.stderr)
            passed = False
        report[f"{name}_vs_{reference}"] = gate.figures["tokens"] | by_token(found[reference][0], found[name][0])
    return passed


# The model ----------------------------------------------------------------------------------------------------------


def tower_model(job: Job) -> FusarForConditionalGeneration:
    """Tower and TLM whole, in float32; the decoder is next to nothing."""
    config = with_fusar(Qwen2_5_VLConfig(**published_config(job.like) | NO_DECODER), IMAGE_SIZE, 2.0, 4)
    torch.manual_seed(job.seed)
    model = FusarForConditionalGeneration(config).eval()
    shards = open_shards(job.base) if job.base else None
    with torch.no_grad():
        for name, parameter in model.model.visual.named_parameters(prefix=PREFIX.rstrip(".")):
            if shards is not None:
                parameter.copy_(shards.tensor(name))
            else:
                parameter.copy_(random_tensor(name, tuple(parameter.shape), job.seed))
    return model


def inputs(model: FusarForConditionalGeneration) -> dict[str, np.ndarray]:
    values = sample(model, 1).vision
    return values | {"anchor_mask": np.zeros_like(values["anchor_mask"])}


def by_token(reference: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Of [T, C]. What all tokens have in common can hide how they differ: they are compared without it too."""
    a, b = reference.astype(np.float64), measured.astype(np.float64)
    least = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    a, b = a - a.mean(0), b - a.mean(0)
    centred = (a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))
    return {"least_token_cosine": float(least.min()), "centred_cosine": float(centred)}


def rounded(seconds: float) -> float:
    return round(seconds, 2)


if __name__ == "__main__":
    main()
