"""A bundle ready to answer: look at an image once, then ask it any number of questions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from fusar_edge.data.grammars import answer_grammar
from fusar_edge.data.tasks import Parsed, parse_answer
from fusar_edge.data.truth import Box
from fusar_edge.errors import BundleError, InputError
from fusar_edge.runtime.backend import Backend, Floats, open_backend
from fusar_edge.runtime.bundle import TOKENIZER, Bundle
from fusar_edge.runtime.generate import Generation, Prefix, generate, run_prefix
from fusar_edge.runtime.grammar import Grammars, Writing
from fusar_edge.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from fusar_edge.anchors.table import AnchorTable


class TileAnchors(Protocol):
    """What fusar_edge.anchors' look-up gives for one tile."""

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """[A]; False for a node without a vector."""
        ...

    def vectors(self) -> npt.NDArray[np.float32]:
        """[A, bands], 0 where masked; `bands` as the bundle's settings say."""
        ...


@dataclass(frozen=True, eq=False)
class SeenInput:
    """One image as vision takes it."""

    grey: npt.NDArray[np.float32]
    """[S, S] in 0..1."""
    anchors: TileAnchors | None = None
    """None: plain Qwen2.5-VL."""
    positions: npt.NDArray[np.float32] | None = None
    """[A, 2] (y, x) of the anchors."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one question."""

    question: str
    parsed: Parsed
    generation: Generation


class Session:
    """One bundle, one backend, one KV cache. Not shared between threads."""

    def __init__(
        self, bundle: Bundle, threads: int = 0, backend: Backend | None = None, *, grammar: bool = True
    ) -> None:
        """`grammar`: answers to `ask` keep to the grammar of their task, and so always parse."""
        self.bundle = bundle
        settings, prompts = bundle.settings, bundle.prompts
        self.tokenizer = Tokenizer(bundle.file(TOKENIZER))
        if self.tokenizer.size > settings.vocab_size:
            raise BundleError(
                f"{bundle.file(TOKENIZER)}: ids up to {self.tokenizer.size - 1} do not fit a vocabulary of "
                f"{settings.vocab_size}; build the bundle with the model's own tokenizer"
            )
        self.prefix = Prefix(
            tuple(self.tokenizer.encode(prompts.before_image)),
            settings.cells,
            settings.image_token_id,
            tuple(self.tokenizer.encode(prompts.after_image)),
        )
        if len(self.prefix) >= settings.context_tokens:
            raise BundleError(
                f"{bundle.folder}: image and template are {len(self.prefix)} tokens, context_tokens is "
                f"{settings.context_tokens}; build the bundle with more"
            )
        self._grammars: Grammars | None = None
        if grammar:
            path = bundle.file(TOKENIZER)
            self._grammars = Grammars(path, settings.vocab_size, settings.eos_ids, self.tokenizer.token)
        self.backend = backend or open_backend(bundle, threads)
        self._cache = self.backend.new_cache(settings.context_tokens)
        self._visual: Floats | None = None

    def look(
        self,
        grey: npt.NDArray[np.float32],
        anchors: TileAnchors | None = None,
        positions: npt.NDArray[np.float32] | None = None,
    ) -> dict[str, float]:
        """Take in an image: vision once, and the keys and values of the prefix. Returns vision_ms and prefix_ms.

        grey [S, S] float32 0..1; anchors of A nodes at positions [A, 2] (y, x), or None: plain Qwen2.5-VL.
        """
        start = time.perf_counter()
        visual = self.see([SeenInput(grey, anchors, positions)])[0]
        return {"vision_ms": (time.perf_counter() - start) * 1e3, "prefix_ms": self.take(visual)}

    def see(self, images: Sequence[SeenInput]) -> list[Floats]:
        """Visual tokens [1, T, C] of each image, by as few runs of vision as the bundle allows.

        An image of a batch has the tokens that it has alone, but for rounding. Nothing is taken in yet: see `take`.
        """
        size, plan = self.bundle.settings.image_size, self.bundle.settings.plan
        for image in images:
            if image.grey.shape != (size, size):
                given = image.grey.shape
                raise InputError(f"an image of {given} was given; this bundle takes {size} x {size} px: resize it")
        most = plan.vision_batch if plan else max(len(images), 1)
        tokens: list[Floats] = []
        for first in range(0, len(images), most):
            part = images[first : first + most]
            pixels = np.stack([image.grey for image in part])[:, None].astype(np.float32, copy=False)
            seen = self.backend.vision(pixels, *_batched([_anchor_inputs(self.bundle, image) for image in part]))
            tokens += [seen[i : i + 1] for i in range(len(part))]
        return tokens

    def take(self, visual: Floats) -> float:
        """Take in one image that was seen: the keys and values of the prefix. Returns milliseconds."""
        start = time.perf_counter()
        self._visual = None
        run_prefix(self.backend, self._cache, self.prefix, visual)
        self._visual = visual
        return (time.perf_counter() - start) * 1e3

    def ask(
        self,
        task: str,
        label: str = "ship",
        box: Box | None = None,
        question: str | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> Answer:
        """Answer the canonical prompt of a task, or `question` read as an answer of that task."""
        text = question or self.bundle.prompts.question(task, label, box)
        settings, grammars = self.bundle.settings, self._grammars
        writing = None
        if grammars is not None:
            size = settings.coordinate_size
            grammar = answer_grammar(task, text, None if question else label, size)
            writing = grammars.begin(grammar, size)
        generation = self.ask_ids(text, settings.max_new_tokens.get(task, 64), on_token, writing)
        said = self.tokenizer.decode(list(generation.ids))
        return Answer(text, parse_answer(task, said, settings.coordinate_size), generation)

    def ask_ids(
        self,
        question: str,
        max_new_tokens: int,
        on_token: Callable[[int], None] | None = None,
        writing: Writing | None = None,
    ) -> Generation:
        """The answer as tokens, to the image of the last `look` or `take`, under no grammar but the one given.

        `on_token` hears each token as it is known.
        """
        if self._visual is None:
            raise InputError("nothing was looked at: call look(image) before asking")
        ids = self.tokenizer.encode_plain(question) + self.tokenizer.encode(self.bundle.prompts.after_question)
        eos = self.bundle.settings.eos_ids
        return generate(
            self.backend, self._cache, self.prefix, self._visual, ids, max_new_tokens, eos, on_token, writing
        )

    def close(self) -> None:
        """Give back what the backend holds on a device, by the thread that made the session; it is of no use then."""
        close = getattr(self.backend, "close", None)
        if close is not None:
            close()


AnchorInputs = tuple[Floats, Floats, Floats]


def _anchor_inputs(bundle: Bundle, image: SeenInput) -> AnchorInputs:
    """Graph inputs [1, A, bands], [1, A, 2], [1, A]; no anchors is one masked anchor."""
    form, anchors, positions = bundle.settings.anchors, image.anchors, image.positions
    if anchors is None or not anchors.mask.any():
        return np.zeros((1, 1, form.bands), np.float32), np.zeros((1, 1, 2), np.float32), np.zeros((1, 1), np.float32)
    if positions is None or len(positions) != len(anchors.mask):
        raise InputError(f"{len(anchors.mask)} anchors need a position (y, x) each")
    vectors = anchors.vectors()
    if vectors.shape[1] != form.bands:
        raise InputError(
            f"anchors of {vectors.shape[1]} values were given; {bundle.folder} takes {form.bands} ({form.form}): look "
            "them up in a table of that form"
        )
    return vectors[None], positions[None], anchors.mask[None].astype(np.float32)


def _batched(inputs: Sequence[AnchorInputs]) -> AnchorInputs:
    """Graph inputs of several images [B, A, ...]; those with fewer anchors get masked ones."""
    most = max(mask.shape[1] for _, _, mask in inputs)

    def joined(arrays: Sequence[Floats]) -> Floats:
        padded = [np.pad(a, [(0, 0), (0, most - a.shape[1]), *[(0, 0)] * (a.ndim - 2)]) for a in arrays]
        return np.concatenate(padded) if len(padded) > 1 else padded[0]

    vectors, places, masks = zip(*inputs, strict=True)
    return joined(vectors), joined(places), joined(masks)


def check_table(bundle: Bundle, table: AnchorTable) -> None:
    """InputError, with the command that helps, where a table is not of the form that the bundle takes."""
    wanted, settings = bundle.settings.anchors, table.manifest.settings
    form, basis = settings.get("form", "codes"), settings.get("basis_sha256", "")
    if (form, basis) == (wanted.form, wanted.basis_sha256):
        return
    export = f"fusar-edge export RECIPE --checkpoint CHECKPOINT --anchors {table.path}"
    if wanted.form == "codes":
        raise InputError(
            f"{table.path} is a baked table, {bundle.folder} takes AlphaEarth codes: give the table that it was baked "
            f"from, or build a bundle for it, from {export}"
        )
    held = "AlphaEarth codes" if form == "codes" else "coefficients of another basis"
    raise InputError(
        f"{table.path} holds {held}, {bundle.folder} takes baked tables of the basis {wanted.basis_sha256[:12]}: make "
        "one with `fusar-edge anchors bake TABLE --checkpoint CHECKPOINT --like BAKED`, BAKED being the table that the "
        "bundle was exported with" + ("" if form == "codes" else f", or build a bundle for it, from {export}")
    )
