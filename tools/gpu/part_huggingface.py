"""Part `huggingface`: Hugging Face's own generate, eager and compiled, in bf16, on the weights of part `graphs`."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import QUESTION, Case, summary, timed
from models import MODELS, model_of, recipe_of
from record import Record
from transformers import LogitsProcessor, LogitsProcessorList, Qwen2_5_VLForConditionalGeneration

from fusar_edge.model.vision import hf_patches_from_grey

NEW_TOKENS = 65
"""The first comes of the prefill; 64 decode steps follow."""


class Clock(LogitsProcessor):
    """When the logits of each token were there: one wait for the device a token, as our runtime has."""

    def __init__(self, device: str) -> None:
        self.device, self.at = device, [0.0]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        wait(self.device)
        self.at.append(time.perf_counter())
        return scores


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def plain_model(name: str, device: str, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Qwen2.5-VL without TLM, and one image with the prompt of the session's case as its `generate` takes them."""
    source = model_of(name)
    config = source.config
    weights = {key: value for key, value in source.state_dict().items() if not key.startswith("tlm.")}
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert not unknown, unknown
    assert set(missing) <= {"lm_head.weight"}, missing  # tied to the embedding
    model.tie_weights()
    model = model.to(device, dtype)

    case = Case(_Shapes(name, source))  # type: ignore[arg-type]  # what Case reads of BundleSettings
    ids = [*case.prefix.ids, *case.question]
    first = len(case.prefix.before)
    ids[first - 1], ids[first + case.prefix.cells**2] = config.vision_start_token_id, config.vision_end_token_id
    patches, grid = hf_patches_from_grey(torch.from_numpy(case.pixels))
    inputs = {
        "input_ids": torch.tensor([ids], device=device),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long, device=device),
        "pixel_values": patches.to(device, dtype),
        "image_grid_thw": grid.to(device),
    }
    return model, inputs


class _Shapes:
    """What `Case` needs to know, from the model itself: no graphs are needed for this part."""

    def __init__(self, name: str, model: Any) -> None:
        self.image_size, self.cells = model.config.fusar["image_size"], model.cells
        self.anchor_nodes, self.anchors = recipe_of(name).anchor_nodes, self
        self.bands = 64
        self.vocab_size, self.image_token_id = model.lm_head.weight.shape[0], model.config.image_token_id


def generation(
    model: Any, inputs: dict[str, Any], device: str, compiled: bool, tokens: int
) -> tuple[list[float], list[int]]:
    """Milliseconds to the first token and between tokens, and the tokens."""
    clock = Clock(device)
    how: dict[str, Any] = {"cache_implementation": "static"} if compiled else {"disable_compile": True}
    wait(device)
    clock.at[0] = time.perf_counter()
    ids = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=None,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([clock]),
        **how,
    )
    return (np.diff(clock.at) * 1e3).tolist(), ids[0, inputs["input_ids"].shape[1] :].tolist()


def measured(
    model: Any, inputs: dict[str, Any], device: str, compiled: bool, repeats: int, tokens: int
) -> dict[str, Any]:
    """ms of vision, first token (vision within) and decode, after two generations of warm-up. Prefill: medians' gap."""

    def see() -> None:
        model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"])
        wait(device)

    with torch.inference_mode():
        vision = timed(see, 2.0 if device == "cuda" else 0.1, most=200)
        runs = [generation(model, inputs, device, compiled, tokens) for _ in range(repeats + 2)]
    first = [taken[0] for taken, _ in runs[2:]]
    decode = [ms for taken, _ in runs[2:] for ms in taken[1:]]
    parts = {"vision": vision, "first_token": first, "decode": decode}
    return {
        "ms": {part: summary(taken) for part, taken in parts.items()},
        "prefill_p50_ms": float(np.median(first) - np.median(vision)),
        "warm_up_s": sum(sum(taken) for taken, _ in runs[:2]) / 1e3,
        "prefill_tokens": inputs["input_ids"].shape[1],
        "cached_tokens": inputs["input_ids"].shape[1] + tokens // 2,
        "question_tokens": QUESTION,
        "ids": runs[0][1],
        "same_ids": all(ids == runs[0][1] for _, ids in runs),
        "observations_ms": parts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU in float32, few tokens, nothing compiled")
    given = parser.parse_args()
    import transformers

    dry, device = given.dry_run, "cpu" if given.dry_run else "cuda"
    gpu = "" if dry else torch.cuda.get_device_name()
    record = Record("huggingface", given.out, torch=torch.__version__, transformers=transformers.__version__, gpu=gpu)
    for name in given.models:
        for compiled in (False, True):
            how = ("static" if dry else "compiled") if compiled else "eager"  # generate compiles on a GPU alone
            record.run(f"{name}_{how}", partial(one, name, device, compiled))


def one(name: str, device: str, compiled: bool) -> dict[str, Any]:
    dry = device == "cpu"
    torch._dynamo.reset()
    model, inputs = plain_model(name, device, torch.float32 if dry else torch.bfloat16)
    return measured(model, inputs, device, compiled, *((1, 4) if dry else (20, NEW_TOKENS)))


if __name__ == "__main__":
    main()
