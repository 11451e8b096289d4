"""`--stage base`: a model from scratch learns to see (dense losses), then to answer shortly, then at length.

It stands for the published Qwen2.5-VL that the full models start from, so it never sees an anchor.
Each phase of the recipe is one run of the Hugging Face Trainer; a killed run goes on from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from fusar_edge.data.tasks import questions_from_truth
from fusar_edge.data.truth import Truth
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.specs import BaseStageSpec, PhaseSpec
from fusar_edge.train.dense import DenseHead, dense_targets, weighted
from fusar_edge.train.images import TrainingImage, View, random_brightness, random_view
from fusar_edge.train.loop import Progress, Schedule, run_trainer
from fusar_edge.train.sequences import SequenceWriter

MANY = 6
"""Images with so many targets or more are alike when images are drawn."""
MAX_TOKENS = 448
"""Questions that would make a sequence longer (detection in a crowded harbour) are left out of the base stage."""


class BaseStageModel(nn.Module):
    """The model and the head that the stage drops."""

    def __init__(self, model: FusarForConditionalGeneration, labels: int) -> None:
        super().__init__()
        self.model = model
        channels = model.config.vision_config.out_hidden_size
        self.head = DenseHead(channels, model.cells, labels, placed=False)
        self.placed_head = DenseHead(channels, model.cells, labels, placed=True)
        self.states_after = model.config.text_config.num_hidden_layers // 2
        self.last: dict[str, float] = {}

    def forward(
        self,
        pixels: Tensor,
        dense: dict[str, Tensor],
        weight: float,
        asked: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        visual = self.model.visual_tokens(pixels)
        losses = self.head(visual, dense) if weight else {}
        total = visual.new_zeros(()) + weight * weighted(losses)
        if asked is not None:
            output = self.model.answer(visual, **asked, states_after=self.states_after)
            assert output.loss is not None
            placed = self.placed_head(output.visual_states, dense) if weight else {}
            total = total + output.loss + weight * weighted(placed)
            losses |= {f"placed_{name}": loss for name, loss in placed.items()} | {"answer": output.loss}
        self.last = {name: float(loss.detach()) for name, loss in losses.items()}
        return {"loss": total}


class BaseStageData(Dataset[dict[str, Any]]):
    """Item i is a function of the seed and i alone, so that a resumed run sees what the killed one would have."""

    def __init__(
        self,
        sources: list[tuple[list[TrainingImage], float]],
        phase: PhaseSpec,
        spec: BaseStageSpec,
        size: int,
        labels: list[str],
    ) -> None:
        weights = np.array([w for _, w in sources], np.float64)
        self.sources, self.share = [s for s, _ in sources], weights / weights.sum()
        self.chances = [_chances(images) for images in self.sources]
        self.phase, self.spec, self.size, self.labels = phase, spec, size, labels
        self.stream = sum(map(ord, phase.name))

    def __len__(self) -> int:
        return self.phase.steps * self.phase.batch

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.spec.seed, self.stream, index])
        source = rng.choice(len(self.sources), p=self.share)
        image = self.sources[source][rng.choice(len(self.sources[source]), p=self.chances[source])]
        written = bool(image.written_captions) and "caption" in self.phase.tasks and rng.random() < 0.4
        plain = written or not self.spec.augment
        view = View() if plain else random_view(rng, image.truth)
        grey = view.pixels(image.pixels, self.size)
        truth = view.truth(image.truth) if image.truth else None
        questions = self._questions(rng, image, truth, written)
        whole = next((t.answer for t in image.triplets if t.task == "classify"), None) if truth is None else None
        return {
            "pixels": random_brightness(rng, grey) if self.spec.augment else grey,
            "truth": truth,
            "whole": whole,
            "questions": questions,
        }

    def _questions(
        self, rng: np.random.Generator, image: TrainingImage, truth: Truth | None, written: bool
    ) -> list[tuple[str, str]]:
        if not self.phase.tasks:
            return []
        rows = questions_from_truth(truth) if truth else [(t.task, t.question, t.answer) for t in image.triplets]
        by_task: dict[str, list[tuple[str, str]]] = {}
        for task, question, answer in rows:
            if task in self.phase.tasks:
                by_task.setdefault(str(task), []).append((question, answer))
        chosen = []
        if written:
            triplet = image.written_captions[rng.integers(len(image.written_captions))]
            chosen.append((triplet.question, triplet.answer))
            by_task.pop("caption", None)
        elif image.written_captions:
            by_task.pop("caption", None)
        names = list(by_task)
        rng.shuffle(names)
        for name in names[: self.phase.questions - len(chosen)]:
            chosen.append(by_task[name][rng.integers(len(by_task[name]))])
        return chosen


def _chances(images: list[TrainingImage]) -> NDArray[np.float64]:
    """Chance of each image: rare numbers of targets come up more often than they are, or '1' would be a safe answer."""
    counts = [min(len(image.truth.targets), MANY) if image.truth else 0 for image in images]
    often = np.bincount(counts, minlength=MANY + 1)
    chances = 1 / np.sqrt(often[counts])
    return chances / chances.sum()


class BaseStageCollator:
    def __init__(self, writer: SequenceWriter, phase: PhaseSpec, labels: list[str]) -> None:
        self.writer, self.phase, self.labels = writer, phase, labels

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        cells = self.writer.cells
        dense = [dense_targets(item["truth"], item["whole"], cells, self.labels) for item in items]
        return {
            "pixels": torch.from_numpy(np.stack([item["pixels"] for item in items]))[:, None],
            "dense": {k: torch.from_numpy(np.stack([d[k] for d in dense])) for k in dense[0]},
            "weight": self.phase.dense,
            "asked": self._asked(items) if self.phase.tasks else None,
        }

    def _asked(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        return self.writer.batch([self.writer.sequence(item["questions"], MAX_TOKENS) for item in items])


def label_names(sources: list[list[TrainingImage]]) -> list[str]:
    """Every class that a target or a whole image has."""
    names = {t.label for images in sources for image in images if image.truth for t in image.truth.targets}
    names |= {t.answer for images in sources for i in images if not i.truth for t in i.triplets if t.task == "classify"}
    return sorted(names)


def train_base(
    model: FusarForConditionalGeneration,
    tokenizer: Path,
    sources: list[tuple[list[TrainingImage], float]],
    spec: BaseStageSpec,
    work: Path,
    *,
    bf16: bool = True,
    log: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the phases in order; `work` keeps the Trainer's checkpoints. Returns the last losses of each phase."""
    labels = label_names([images for images, _ in sources])
    writer = SequenceWriter(tokenizer, model.cells)
    stage = BaseStageModel(model, len(labels))
    figures: dict[str, Any] = {}
    for number, phase in enumerate(spec.phases):
        data = BaseStageData(sources, phase, spec, model.config.fusar["image_size"], labels)
        collator = BaseStageCollator(writer, phase, labels)
        last = number == len(spec.phases) - 1
        log(f"phase {phase.name}: {phase.steps} steps of {phase.batch} images, lr {phase.lr}")
        figures[phase.name] = run_trainer(
            stage,
            data,
            collator,
            work / f"{number}-{phase.name}",
            Schedule(
                phase.steps,
                phase.batch,
                phase.lr,
                warmup=spec.warmup,
                decay=spec.weight_decay,
                scheduler="cosine" if last else "constant_with_warmup",
                seed=spec.seed,
            ),
            bf16=bf16,
            extra=lambda: stage.last,
            progress=progress,
        )
    return figures
