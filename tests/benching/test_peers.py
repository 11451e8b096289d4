"""Peers answer the default bundle's questions as the bundle itself does, or as its FP32 graphs do."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fusar_edge.bench.peer import PeerAnswer, Question, make_peer
from fusar_edge.bench.peers import PEERS
from fusar_edge.bench.peers.fp32_graph import fp32_folder, fp32_models
from fusar_edge.errors import BundleError, MissingExtraError
from fusar_edge.runtime.bundle import DEFAULT, TENSORRT, Bundle, PlanFacts, open_bundle
from fusar_edge.runtime.session import Session

TOKENS = 12


class SomeAnchors:
    def __init__(self, length: float = 1.0) -> None:
        rng = np.random.default_rng(5)
        self.mask = rng.random(81) < 0.7
        self._vectors = rng.normal(size=(81, 64)).astype(np.float32) / 8 * np.float32(length)

    def vectors(self) -> np.ndarray:
        return self._vectors


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    if not (DEFAULT / "manifest.json").is_file():
        pytest.skip("this checkout holds no default bundle")
    return open_bundle("default")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="module")
def tile(bundle: Bundle) -> tuple[np.ndarray, SomeAnchors, np.ndarray]:
    """Grey, anchors, positions."""
    rng = np.random.default_rng(4)
    nodes = np.stack(np.meshgrid(*[np.linspace(0, 1, 9)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    size = bundle.settings.image_size
    grey = np.clip(rng.gamma(1.0, 0.15, (size, size)), 0, 1).astype(np.float32)
    grey[100:112, 60:100] = 1.0
    return grey, SomeAnchors(), nodes.astype(np.float32)


@pytest.fixture(scope="module")
def questions(bundle: Bundle) -> list[Question]:
    return [(task, bundle.prompts.question(task), TOKENS) for task in ("count", "caption", "detect")]


@pytest.fixture(scope="module")
def said(bundle: Bundle, work: Path, tile: Any, questions: list[Question]) -> Iterator[Any]:
    """Peer's name -> its answer about the one tile; each is asked once."""
    answers: dict[str, PeerAnswer] = {}

    def ask(name: str) -> PeerAnswer:
        if name not in answers:
            peer = make_peer(name)
            peer.open(bundle, 1, work)
            answers[name] = peer.answer(*tile, questions)
            peer.close()
            peer.close()
        return answers[name]

    return ask


@pytest.fixture(scope="module")
def ours(bundle: Bundle, tile: Any, questions: list[Question]) -> tuple[tuple[int, ...], ...]:
    session = Session(bundle, threads=1)
    session.look(*tile)
    return tuple(session.ask_ids(text, most).ids for _, text, most in questions)


def test_the_plain_loop_on_the_same_graphs_says_what_we_say(said: Any, ours: Any) -> None:
    assert said("ort-loop-int8").ids == ours


def test_hugging_face_and_the_fp32_graphs_say_the_same(said: Any) -> None:
    pytest.importorskip("transformers")
    assert said("hf-eager").ids == said("ort-loop").ids
    assert said("hf-eager").texts == said("ort-loop").texts


def test_anchors_reach_the_visual_tokens_of_hugging_face(bundle: Bundle, work: Path, tile: Any) -> None:
    """Vectors far longer than AlphaEarth's: the default bundle's TLM is small, and a dozen tokens have to change."""
    pytest.importorskip("transformers")
    grey, _, positions = tile
    question, said = [("caption", bundle.prompts.question("caption"), TOKENS)], {}
    for name in ("ort-loop", "hf-eager"):
        peer = make_peer(name)
        peer.open(bundle, 1, work)
        given = (None, SomeAnchors(3e4))
        said[name] = [peer.answer(grey, a, positions if a else None, question).ids for a in given]
        peer.close()
    assert said["hf-eager"] == said["ort-loop"]
    assert said["hf-eager"][0] != said["hf-eager"][1]


def test_llama_cpp_sees_the_image_and_says_what_we_say(
    said: Any, bundle: Bundle, work: Path, tile: Any, questions: list[Question]
) -> None:
    """A text prompt alone, or an image at wrong positions, gives other numbers; Q8_0 and INT8 differ near ties only."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is compiled from source; not installed")
    reference, found = said("ort-loop").ids, said("llama.cpp")
    same = sum(a == b for one, two in zip(reference, found.ids, strict=True) for a, b in zip(one, two, strict=False))
    assert same >= 0.8 * sum(map(len, reference))


@pytest.mark.parametrize("name", ["hf-eager", "ort-loop", "ort-loop-int8", "llama.cpp"])
def test_parts_lie_within_the_tile_and_tokens_are_counted(name: str, said: Any) -> None:
    for package in {"hf-eager": ("transformers",), "llama.cpp": ("llama_cpp",)}.get(name, ()):
        pytest.importorskip(package)
    answer = said(name)
    parts = {part: ms for part, ms in answer.ms.items() if part != "tile"}
    assert {"vision", "prefill", "decode"} <= set(parts)
    assert min(parts.values()) > 0
    assert sum(parts.values()) <= answer.ms["tile"] * 1.001
    # The prefill gives the first token; the end of an answer is a token too where it was not cut short.
    assert answer.decode_tokens == sum(len(ids) - (len(ids) == TOKENS) for ids in answer.ids)


def test_the_fp32_folder_is_made_once(bundle: Bundle, tmp_path: Path) -> None:
    folder = fp32_folder(bundle, tmp_path)
    before = (folder / "decoder.onnx").stat().st_mtime_ns
    assert fp32_folder(bundle, tmp_path) == folder
    assert (folder / "decoder.onnx").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_of_the_table_exists_and_knows_its_name(name: str) -> None:
    peer: Any = make_peer(name)
    assert peer.name == name
    assert peer.compared in ("tile", "decode")
    peer.close()


@pytest.mark.parametrize(
    ("name", "lacks"), [("hf-eager", "torch"), ("hf-compile", "torch"), ("llama.cpp", "llama_cpp")]
)
def test_a_missing_package_is_named_before_any_work(
    name: str, lacks: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(PEERS[name].split(":")[0])
    found = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda package: None if package == lacks else found(package))
    with pytest.raises(MissingExtraError, match="pip install"):
        make_peer(name).open(bundle, 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_bundle_of_plans_is_refused_with_what_to_do(bundle: Bundle, tmp_path: Path) -> None:
    facts = PlanFacts(
        tensorrt="10.16.1.11", compute_capability="8.7", gpu="Orin", prefill_tokens=512, vision_batch=1,
        kv_dtype="float16",
    )  # fmt: skip
    settings = msgspec.structs.replace(bundle.settings, engine=TENSORRT, plan=facts, fused=None)
    plans = Bundle(bundle.folder, settings, bundle.prompts, bundle.radiometry, bundle.manifest, bundle.sha256)
    with pytest.raises(BundleError, match="the bundle for onnxruntime"):
        fp32_models(plans)
    with pytest.raises(BundleError, match="for onnxruntime"):
        make_peer("ort-loop-int8").open(plans, 1, tmp_path)
