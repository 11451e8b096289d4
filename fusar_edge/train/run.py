"""`fusar-edge train`: one stage, from recipe and data to a checkpoint folder with its lineage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from fusar_edge.errors import CheckpointError, DataError, InputError, OutputExistsError, RecipeError
from fusar_edge.manifest import (
    Manifest,
    check_output,
    folder_hashes,
    output_folder,
    package_versions,
    sha256_file,
    sha256_text,
    write_manifest,
)
from fusar_edge.model import checkpoint
from fusar_edge.model.hub import local_folder
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.model.weights import base_weights, is_base
from fusar_edge.recipes import load_recipe
from fusar_edge.specs import ModelRecipe
from fusar_edge.train.base import train_base
from fusar_edge.train.images import TrainingImage, load_images
from fusar_edge.train.loop import Progress, holds_training
from fusar_edge.train.parent import open_parent, parent_hashes, parent_lora
from fusar_edge.train.processes import check_launch, processes, sharded
from fusar_edge.train.sft import train_sft

Stage = Literal["base", "1", "2"]

CACHE_SCALE = 4 / 3
"""Cached images are so much larger than the model's, so that crops keep their detail."""


@dataclass(frozen=True)
class _Run:
    """Everything that decides what a training run computes."""

    recipe_name: str
    recipe: ModelRecipe
    recipe_text: str
    stage: Stage
    data: tuple[tuple[Path, float], ...]
    init: str | Path | None
    """As a string the word `base` alone: the recipe's published base."""
    scale: float = 1.0
    sigma: float | None = None
    processes: int = 1

    def inputs(self) -> dict[str, str]:
        found = {f"data/{path.parent.name}/{path.name}": sha256_file(path) for path, _ in self.data}
        return found | parent_hashes(self.init, self.recipe)

    def identity(self) -> str:
        weights = [weight for _, weight in self.data]
        settings = [self.recipe_text, self.stage, weights, self.scale, self.processes, self.inputs()]
        return sha256_text(json.dumps(settings, sort_keys=True))


def weighted_manifest(text: str) -> tuple[Path, float]:
    """`PATH` or `PATH@WEIGHT`, e.g. `ssdd/train.jsonl@3`."""
    path, at, weight = text.rpartition("@")
    if not at:
        return Path(text), 1.0
    try:
        value = float(weight)
    except ValueError:
        return Path(text), 1.0
    if value <= 0:
        raise DataError(f"{text}: the weight after @ is a number above 0")
    return Path(path), value


def train(
    recipe_name: str,
    stage: Stage,
    data: Sequence[str],
    out: Path,
    *,
    init: str | Path | None = None,
    sigma: float | None = None,
    scale: float = 1.0,
    force: bool = False,
    log: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Manifest:
    """Train one stage into the new folder `out`; returns its manifest.

    `data`: manifests, each `PATH` or `PATH@WEIGHT`; the weight says how often the base stage draws from it. `scale`:
    this share of the recipe's steps, for a trial; it is recorded. A run that was killed goes on when the same command
    is given again: its state is in `OUT.training` until it is done. Where a launcher started several processes, each
    calls this; the first writes, and the others' manifests hold the figures alone.
    """
    recipe, text = load_recipe("export", recipe_name, ModelRecipe)
    if not 0 < scale <= 1:
        raise RecipeError(f"--scale {scale}: give a share of the recipe's steps above 0 and at most 1")
    launch = processes()
    if stage == "base" and launch.num_processes > 1:
        raise RecipeError("the base stage trains a small model in one process: start it without a launcher")
    check_launch()
    if not launch.is_main_process:
        log, progress = _unheard, None
    init = init if init is None or is_base(init, recipe) else local_folder(init)
    given = tuple(weighted_manifest(d) for d in data)
    run = _Run(recipe_name, recipe, text, stage, given, init, scale, sigma, launch.num_processes)
    out = Path(out)
    check_output(out, force)
    model, tokenizer = _initial_model(run)
    work = _work_path(out)
    created = launch.is_main_process and _work_folder(run, out, force)
    try:
        with launch.main_process_first():
            sources = [(_images(run, path, work, progress), weight) for path, weight in run.data]
        peft, figures = _train_stage(run, model, tokenizer, sources, work, log, progress)
        if not launch.is_main_process:
            launch.wait_for_everyone()  # until the first has written `out`
            return Manifest(stage=stage, figures=figures)
        if sharded(model):  # what was gathered goes into a whole model
            model, tokenizer = _initial_model(run)
            peft, figures = _train_stage(run, model, tokenizer, sources, work, _unheard, None)
    except InputError:
        if created and not holds_training(work):  # what was trained is kept: the input may be back the next time
            shutil.rmtree(work)
        raise
    with output_folder(out, force=force) as folder:
        if stage == "base":
            checkpoint.save_model(model, tokenizer, folder)
        else:
            checkpoint.save_stage(peft, model, tokenizer, folder, recipe.base, parent_lora(init, recipe))
        for log_file in sorted(work.rglob("log.jsonl")):  # losses by step, of each phase or stage
            (folder / "log").mkdir(exist_ok=True)
            shutil.copyfile(log_file, folder / "log" / f"{log_file.parent.name}.jsonl")
        manifest = _manifest(run, figures)
        manifest.files = folder_hashes(folder)
        write_manifest(folder, manifest)
    shutil.rmtree(work)
    launch.wait_for_everyone()
    return manifest


def _unheard(_: str) -> None:
    """For processes that say nothing."""


def _work_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.training")


def _work_folder(run: _Run, out: Path, force: bool) -> bool:
    """Make the folder of the run's state; False where it is there and the run goes on."""
    work = _work_path(out)
    identity = work / "run"
    if work.exists() and (not identity.is_file() or identity.read_text() != run.identity()):
        if not force:
            raise OutputExistsError(
                f"{work} holds an unfinished run of another recipe, data, parent or number of processes: "
                "give the same arguments to go on with it, another --out, or --force to start over"
            )
        shutil.rmtree(work)
    if work.exists():
        return False
    text = run.identity()
    work.mkdir(parents=True)
    identity.write_text(text)
    return True


def _initial_model(run: _Run) -> tuple[FusarForConditionalGeneration, Path]:
    if run.init:
        weights = open_parent(run.init, run.recipe, run.stage, run.sigma)
        return checkpoint.model_from(weights).train(), weights.tokenizer
    if run.stage == "base":
        if run.recipe.base:
            raise RecipeError(f"{run.recipe_name} starts from the published {run.recipe.base}: it has no base stage")
        tokenizer = checkpoint.tokenizer_path(run.recipe, run.recipe_name)
        return checkpoint.new_model(run.recipe, tokenizer), tokenizer
    if run.stage == "1" and run.recipe.base:
        weights = base_weights(run.recipe)
        return checkpoint.model_from(weights).train(), weights.tokenizer
    raise CheckpointError(f"stage {run.stage} of {run.recipe_name} needs --init: the folder of the stage before it")


def _images(run: _Run, path: Path, work: Path, progress: Progress | None) -> list[TrainingImage]:
    cache_px = round(run.recipe.image_size * CACHE_SCALE) if run.stage == "base" else run.recipe.image_size
    step = None if progress is None else lambda done, total: progress(f"read {path.parent.name}", done, total)
    return load_images(path, cache_px, work / "cache", step)


def _train_stage(
    run: _Run,
    model: FusarForConditionalGeneration,
    tokenizer: Path,
    sources: list[tuple[list[TrainingImage], float]],
    work: Path,
    log: Callable[[str], None],
    progress: Progress | None,
) -> tuple[Any, dict[str, Any]]:
    spec = run.recipe.train
    if run.stage == "base":
        assert spec.base is not None
        shorter = [msgspec.structs.replace(p, steps=max(1, round(p.steps * run.scale))) for p in spec.base.phases]
        base = msgspec.structs.replace(spec.base, phases=tuple(shorter))
        figures = train_base(model, tokenizer, sources, base, work, bf16=spec.bf16, log=log, progress=progress)
        return None, figures
    stage = int(run.stage)
    images = [image for images, _ in sources for image in images]
    settings = spec.stage1 if stage == 1 else spec.stage2
    settings = msgspec.structs.replace(settings, epochs=settings.epochs * run.scale)
    return train_sft(
        model,
        tokenizer,
        images,
        stage,
        settings,
        spec,
        parent_lora(run.init, run.recipe),
        work / f"stage{stage}",
        log=log,
        progress=progress,
    )


def _manifest(run: _Run, figures: dict[str, Any]) -> Manifest:
    stage = run.stage if run.stage == "base" else f"stage{run.stage}"
    return Manifest(
        stage=stage,
        recipe=run.recipe_text,
        inputs=run.inputs(),
        figures=figures,
        settings={
            "recipe": run.recipe_name,
            "scale": run.scale,
            "processes": run.processes,
            "data": {str(p.parent.name + "/" + p.name): w for p, w in run.data},
        },
        packages=package_versions("torch", "transformers", "peft", "accelerate", "numpy"),
    )
