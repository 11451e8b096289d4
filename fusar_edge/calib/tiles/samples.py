"""What the graphs are calibrated and compared on: tiles with a question, its reference answer and anchors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.per_image import read_anchor_file
from fusar_edge.calib.graphs import GraphFolder
from fusar_edge.data.triplets import Triplet, read_triplets, triplets_by_image
from fusar_edge.errors import DataError
from fusar_edge.export.baking.projector import read_projector
from fusar_edge.runtime.backend import Backend, Floats, Int32
from fusar_edge.runtime.bundle import TOKENIZER, Prompts
from fusar_edge.runtime.generate import Prefix
from fusar_edge.runtime.tokenizer import Tokenizer
from fusar_edge.sar.image import Grey, grey_from_file, resized

SINGLE_STEPS = 8
"""Answer tokens that are fed one by one, as in decoding; the rest of a longer answer follows in one run."""

Feeds = dict[str, npt.NDArray[Any]]


def some_samples(manifests: Sequence[Path], images: int) -> list[Triplet]:
    """`spread` over the records of several manifests."""
    return spread([triplet for path in manifests for triplet in read_triplets(path)], images)


def spread(triplets: list[Triplet], images: int) -> list[Triplet]:
    """One question of each of so many images, evenly over the records, the questions of an image in turn."""
    groups = list(triplets_by_image(triplets).values())
    places = np.unique(np.linspace(0, len(groups) - 1, min(images, len(groups))).round().astype(int))
    return [groups[place][turn % len(groups[place])] for turn, place in enumerate(places)]


@dataclass(frozen=True)
class StepInput:
    """One run of the decoder, but for visual tokens and cache."""

    input_ids: Int32
    """[1, N]."""
    visual_index: Int32
    position_ids: Int32
    """[3, 1, N]."""


class SampleReader:
    """Turns triplets into inputs of the two graphs."""

    def __init__(self, graphs: GraphFolder) -> None:
        self.graphs, self.settings = graphs, graphs.settings
        self.tokenizer = Tokenizer(graphs.path / TOKENIZER)
        self.prompts = Prompts()
        before, after = (self.tokenizer.encode(p) for p in (self.prompts.before_image, self.prompts.after_image))
        self.prefix = Prefix(tuple(before), self.settings.cells, self.settings.image_token_id, tuple(after))
        form = graphs.settings.anchors
        self.projector = read_projector(graphs.path) if form.form == "baked" else None
        self._greys: dict[Path, Grey] = {}

    def vision_feeds(self, sample: Triplet) -> list[Feeds]:
        """The image with its anchors, where it has any, and without; the last one is the image as deployed."""
        plain = {
            "pixels": self._grey(sample.image)[None, None].astype(np.float32, copy=False),
            "anchors": np.zeros((1, 1, self.settings.anchors.bands), np.float32),
            "anchor_positions": np.zeros((1, 1, 2), np.float32),
            "anchor_mask": np.zeros((1, 1), np.float32),
        }
        if sample.aef is None:
            return [plain]
        features, positions = read_anchor_file(sample.aef)
        if self.projector is not None:
            features = self.projector.coefficients(features)
        mask = np.ones((1, len(features)), np.float32)
        seen = {"anchors": features[None], "anchor_positions": positions[None], "anchor_mask": mask}
        return [plain, plain | seen]

    def _grey(self, path: Path) -> Grey:
        """Read once: a few hundred small images are visited several times."""
        if path not in self._greys:
            self._greys[path] = resized(grey_from_file(path, self.graphs.radiometry), self.settings.image_size)
        return self._greys[path]

    def steps(self, sample: Triplet, single: int = SINGLE_STEPS) -> list[StepInput]:
        """The prompt in one run, then the reference answer: `single` tokens one by one, what is left in one run.

        An answer that does not fit the context is cut; raises DataError where the question does not.
        """
        question = self.tokenizer.encode_plain(sample.question) + self.tokenizer.encode(self.prompts.after_question)
        prompt = [*self.prefix.ids.tolist(), *question]
        room = self.settings.context_tokens - len(prompt)
        if room < 1:
            raise DataError(
                f"{sample.image}: its question leaves no room in a context of {self.settings.context_tokens}"
            )
        answer = self.tokenizer.encode_plain(sample.answer)[:room]
        ids = np.array([*prompt, *answer], np.int32)
        index = np.full(len(ids), -1, np.int32)
        index[: len(self.prefix)] = self.prefix.visual_index
        positions = self.prefix.positions(len(ids))
        cuts = [0, *range(len(prompt), min(len(ids), len(prompt) + single)), len(ids)]
        spans = [slice(a, b) for a, b in itertools.pairwise(cuts) if b > a]
        return [StepInput(ids[s][None], index[s][None], positions[:, None, s]) for s in spans]

    def decoder_feeds(self, backend: Backend, sample: Triplet) -> Iterator[Feeds]:
        """What the decoder is fed while the FP32 `backend` gives the reference answer; `past` holds until the next."""
        seen = self.vision_feeds(sample)[-1]
        visual = vision_tokens(backend, seen)
        cache: Any = backend.new_cache(self.settings.context_tokens)
        for step in self.steps(sample):
            yield {
                "input_ids": step.input_ids,
                "visual_tokens": visual,
                "visual_index": step.visual_index,
                "position_ids": step.position_ids,
                "past": cache.past(),
            }
            backend.step(cache, step.input_ids, visual, step.visual_index, step.position_ids)


def vision_tokens(backend: Backend, feed: Feeds) -> Floats:
    """[1, T, C]."""
    return backend.vision(feed["pixels"], feed["anchors"], feed["anchor_positions"], feed["anchor_mask"])


def sample_files(samples: list[Triplet]) -> list[Path]:
    """Images and anchor files, each once, in order."""
    paths = [p for s in samples for p in (s.image, s.aef) if p is not None]
    return list(dict.fromkeys(paths))
