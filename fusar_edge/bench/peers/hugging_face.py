"""Hugging Face `generate` on the bundle's weights in FP32, as a user of transformers writes it, and compiled.

Each question is a `generate` of its own with pixels and the whole prompt. TLM sits on the vision tower as a forward
hook, which is how the official code adds it to Qwen2.5-VL.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fusar_edge.bench.peer import PeerAnswer, Question
from fusar_edge.bench.peers.architecture import Architecture, architecture_from
from fusar_edge.bench.peers.fp32_graph import fp32_models
from fusar_edge.bench.peers.prompt import PromptWriter, anchor_arrays
from fusar_edge.bench.peers.weights import Weights, layer_weights, state_dict_from
from fusar_edge.errors import MissingExtraError
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.session import TileAnchors

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

    from fusar_edge.runtime.bundle import BundleSettings


class EagerPeer:
    """transformers as installed, its default attention (SDPA), FP32, the threads given."""

    name = "hf-eager"
    precision = "fp32"
    compared = "tile"

    def __init__(self) -> None:
        self._model: Any = None
        self._anchors: tuple[Any, ...] = ()
        self._vision_s = 0.0

    def open(self, bundle: Bundle, threads: int, work: Path) -> None:
        if find_spec("torch") is None or find_spec("transformers") is None:
            raise MissingExtraError(f"{self.name} needs torch and transformers: pip install 'fusar-edge[workshop]'")
        import torch

        torch.set_num_threads(threads)
        self._writer, self._bands = PromptWriter(bundle), bundle.settings.anchors.bands
        self._model, self._tlm = network_from(bundle, self._writer)
        self._hook(self._model.model.visual)

    def answer(
        self,
        grey: npt.NDArray[np.float32],
        anchors: TileAnchors | None,
        positions: npt.NDArray[np.float32] | None,
        questions: Sequence[Question],
    ) -> PeerAnswer:
        import torch

        assert self._model is not None, "open comes first"
        start = time.perf_counter()
        self._anchors = tuple(torch.from_numpy(a) for a in anchor_arrays(self._bands, anchors, positions))
        ms = dict.fromkeys(("vision", "prefill", "decode"), 0.0)
        said, tokens = [], 0
        for _, text, most in questions:
            clock = _TokenClock()
            self._vision_s = 0.0
            ids = self._generate(grey, text, most, clock)
            vision_ms = self._vision_s * 1e3
            ms["vision"] += vision_ms
            ms["prefill"] += (clock.times[1] - clock.times[0]) * 1e3 - vision_ms
            ms["decode"] += (clock.times[-1] - clock.times[1]) * 1e3
            tokens += len(clock.times) - 2
            said.append(tuple(i for i in ids if not self._writer.ends(i)))
        texts = tuple(self._writer.tokenizer.decode(list(ids)) for ids in said)
        ms["tile"] = (time.perf_counter() - start) * 1e3
        return PeerAnswer(tuple(said), texts, ms, tokens)

    def close(self) -> None:
        self._model = None

    def _generate(self, grey: npt.NDArray[np.float32], text: str, most: int, clock: _TokenClock) -> list[int]:
        import torch

        from fusar_edge.model.vision import hf_patches_from_grey

        patches, grid = hf_patches_from_grey(torch.from_numpy(grey)[None, None])
        ids = torch.from_numpy(self._writer.ids(text)).long()[None]
        found = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=patches,
            image_grid_thw=grid,
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=list(self._writer.settings.eos_ids),
            pad_token_id=self._writer.settings.eos_ids[0],
            streamer=clock,
        )
        answer: list[int] = found[0, ids.shape[1] :].tolist()
        return answer

    def _hook(self, tower: Any) -> None:
        """TLM behind the tower, and the time that both take."""

        def begin(*_: Any) -> None:
            self._vision_s -= time.perf_counter()

        def end(_: Any, __: Any, tokens: Any) -> Any:
            modulated = self._tlm(tokens[None], *self._anchors)[0]
            self._vision_s += time.perf_counter()
            return modulated

        tower.register_forward_pre_hook(begin)
        tower.register_forward_hook(end)


class CompiledPeer(EagerPeer):
    """The language model under torch.compile, with transformers' growing cache and dynamic shapes.

    On 2 cores this decodes faster than the static cache that transformers advises for GPUs, which attends to the whole
    of its length at each token. The tower stays eager: its loops over windows break the graph at each.
    """

    name = "hf-compile"

    def open(self, bundle: Bundle, threads: int, work: Path) -> None:
        super().open(bundle, threads, work)
        import torch

        language, size = self._model.model.language_model, bundle.settings.image_size
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch 2.13 on its own modules
            language.forward = torch.compile(language.forward, dynamic=True)
            # Three shapes are compiled: an empty cache, the first token after it, every other. A minute or more.
            questions = [(task, bundle.prompts.question(task), 4) for task in ("caption", "detect")]
            self.answer(np.zeros((size, size), np.float32), None, None, questions)


class _TokenClock:
    """A streamer of transformers that notes when the prompt began and when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def network_from(bundle: Bundle, writer: PromptWriter) -> tuple[Qwen2_5_VLForConditionalGeneration, Any]:
    """(Qwen2.5-VL in float32 and eval mode, TLM as a module) with the weights of a bundle's graphs."""
    graphs = fp32_models(bundle)
    vision, decoder = (layer_weights(graph) for graph in graphs)
    shape = architecture_from(bundle.settings, graphs, (vision, decoder))
    del graphs
    special = {
        name: writer.tokenizer.encode(f"<|{token}|>")[0]
        for name, token in (("video", "video_pad"), ("vision_start", "vision_start"), ("vision_end", "vision_end"))
    }
    return network(bundle.settings, shape, state_dict_from(vision, decoder), special)


def network(
    settings: BundleSettings, shape: Architecture, state: Weights, special: dict[str, int]
) -> tuple[Qwen2_5_VLForConditionalGeneration, Any]:
    """The same, from its parts. `special`: ids of video, vision_start and vision_end."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.modeling_utils import no_init_weights

    from fusar_edge.model.network import network_config

    tokens = {
        "vocab_size": settings.vocab_size,
        "bos": settings.eos_ids[0],
        "eos": settings.eos_ids[0],
        "image": settings.image_token_id,
        **special,
    }
    mlp = state.get("tlm.film_mlp.0.weight")
    mult = 4 if mlp is None else len(mlp) // settings.channels
    parts = asdict(shape)
    config = network_config(parts["vision"], parts["text"], settings.image_size, shape.sigma, mult, tokens)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False  # INT8 head, FP16 embedding
    with no_init_weights():
        model = Qwen2_5_VLForConditionalGeneration(config)
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    own = {name: value for name, value in tensors.items() if not name.startswith("tlm.")}
    model.load_state_dict(own, strict=True, assign=True)
    return model.float().eval(), _tlm(settings, shape, tensors)


def _tlm(settings: BundleSettings, shape: Architecture, tensors: dict[str, Any]) -> Any:
    """TLM with its MLP, or with the basis of a baked table."""
    from fusar_edge.model.tlm import BakedModulation, TokenModulation

    patches = settings.image_size // shape.vision["patch_size"]
    mlp = {name.removeprefix("tlm."): value for name, value in tensors.items() if name.startswith("tlm.film_mlp.")}
    hidden = len(mlp["film_mlp.0.weight"]) if mlp else 0
    tlm = TokenModulation(settings.channels, patches, settings.cells, shape.sigma, hidden // settings.channels)
    if settings.anchors.form == "baked":
        return BakedModulation(tlm, tensors["tlm.weight"], tensors["tlm.basis.weight"].T).eval()
    tlm.load_state_dict(mlp, strict=True, assign=True)
    return tlm.eval()
