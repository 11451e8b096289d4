"""The bundle: one folder with all that a device needs to interpret scenes, every file sealed by its SHA-256.

    vision.onnx decoder.onnx      graphs (DESIGN section 3), for the engine `onnxruntime`
    decoder.plain.onnx            where decoder.onnx is fused: the graph it was made of, without its weights
    vision.plan decoder.plan      what TensorRT built of them, for the engine `tensorrt`; graphs are not shipped then
    vision.layers.json ...        layers and kernels of each plan, for people
    tokenizer.json                Hugging Face `tokenizers` file
    adapters/NAME.data .json      task adapters, where the decoder has a branch for one (fusar_edge.runtime.adapters)
    prompts.json                  chat template pieces and the canonical prompt of each task
    radiometry.json               the one mapping from SAR values to grey
    manifest.json                 stage "build"; settings, SHA-256 of each file, lineage, figures

`open_bundle` reads one, `seal_bundle` makes one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from fusar_edge.data import chat
from fusar_edge.data.tasks import TASKS, canonical_prompt
from fusar_edge.errors import BundleError
from fusar_edge.manifest import (
    FILENAME,
    Manifest,
    folder_hashes,
    read_manifest,
    sha256_file,
    verify_files,
    write_manifest,
)
from fusar_edge.sar.radiometry import Radiometry

FORMAT = 1
"""Version of the folder; a reader refuses every other."""
STAGE = "build"
VISION, DECODER, TOKENIZER = "vision.onnx", "decoder.onnx", "tokenizer.json"
PLAIN_DECODER = "decoder.plain.onnx"
ADAPTERS = "adapters"
"""Folder of task adapters."""
PROMPTS, RADIOMETRY = "prompts.json", "radiometry.json"
PLANS = {VISION: "vision.plan", DECODER: "decoder.plan"}
"""Graph -> the plan that stands in its place in a bundle of the engine `tensorrt`."""
LAYERS = {VISION: "vision.layers.json", DECODER: "decoder.layers.json"}
REQUIRED = (VISION, DECODER, TOKENIZER, PROMPTS, RADIOMETRY)
"""Files of a bundle for ONNX Runtime."""
TENSORRT = "tensorrt"
DEFAULT = Path(__file__).parent.parent / "_bundles" / "default"

Count = Annotated[int, msgspec.Meta(ge=1)]
TokenId = Annotated[int, msgspec.Meta(ge=0)]
T = TypeVar("T")

MAX_NEW_TOKENS = {"caption": 192, "count": 8, "grid": 32, "classify": 16, "detect": 512}


class AnchorForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which anchor tables the vision graph takes."""

    form: Literal["codes", "baked"] = "codes"
    """AlphaEarth vectors, or the coefficients of a table that `anchors bake` made."""
    bands: Count = 64
    """Width of the graph's input `anchors`."""
    basis_sha256: str = ""
    """Of the baked tables' basis.npz, which is in the graph."""


class PlanFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the plans of a TensorRT bundle were built for; a plan opens on that GPU architecture and version alone."""

    tensorrt: str
    """Version, such as `10.16.1.11`."""
    compute_capability: str
    """`8.7` is Orin."""
    gpu: str
    """Name of the GPU that they were built on."""
    prefill_tokens: Count
    """New tokens at most in one run of the decoder's profile 0; any number of cached ones goes before them."""
    vision_batch: Count
    """Images at most in one run of vision."""
    kv_dtype: Literal["float16", "float32"]
    """Type of `past` and `new`."""
    cuda_graphs: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Lengths of the cache for which the decode step is kept as a CUDA graph; 0: none."""


class FusedFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A decoder that was fused for ONNX Runtime (fusar_edge.engines.fused): the runtime keeps its rotary tables."""

    sections: tuple[Count, Count, Count]
    """How many frequencies turn by time, by row, by column: head_dim / 2 together."""
    frequencies: Annotated[tuple[float, ...], msgspec.Meta(min_length=1)]
    """Radians per position, [head_dim / 2]."""


class AdapterFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Task adapters of a decoder that has a branch for one (fusar_edge.runtime.adapters)."""

    active: str
    """Name of the adapter that answers: adapters/NAME.data."""
    exported: str
    """The one that the graph was exported, calibrated and measured with; decoder.onnx itself refers to its file."""


class BundleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the runtime must know about the graphs; checked against them when they are opened."""

    format: int = FORMAT
    name: str = ""
    """Name of the model recipe, shown to people."""
    image_size: Count
    """Side S of the square image that vision takes, px."""
    cells: Count
    """Visual tokens per side; an image is cells^2 tokens."""
    channels: Count
    """Width C of a visual token."""
    layers: Count
    kv_heads: Count
    head_dim: Count
    vocab_size: Count
    """Width V of the logits."""
    eos_ids: Annotated[tuple[TokenId, ...], msgspec.Meta(min_length=1)]
    """Any of them ends an answer."""
    image_token_id: TokenId
    """Id of `<|image_pad|>`, the place of a visual token."""
    anchor_nodes: Count = 18
    """AlphaEarth nodes per side of a tile."""
    anchors: AnchorForm = AnchorForm()
    """Form of the anchors; AlphaEarth codes unless told otherwise."""
    context_tokens: Count = 1024
    """Rows of the KV cache: image, prompt and answer together."""
    max_new_tokens: dict[str, Count] = msgspec.field(default_factory=lambda: dict(MAX_NEW_TOKENS))
    """Per task; an answer that reaches it has stop reason `max_new_tokens`."""
    tile_px: Count = 504
    """Side of a tile cut from a scene, px of the scene."""
    overlap_px: Annotated[int, msgspec.Meta(ge=0)] = 64
    """What neighbouring tiles share at least, px of the scene; the command line may say otherwise."""
    coordinate_size: Count = 504
    """Side of the square that boxes in answers refer to."""
    precision: Literal["int8", "fp32"] = "fp32"
    engine: str = "onnxruntime"
    """Which backend opens the graphs (fusar_edge.runtime.backend)."""
    plan: PlanFacts | None = None
    """Engine `tensorrt` only."""
    fused: FusedFacts | None = None
    """None: the decoder is the graph of DESIGN section 3."""
    adapters: AdapterFacts | None = None
    """None: the decoder has no branch, its weights are those of one task."""

    def __post_init__(self) -> None:
        if (self.engine == TENSORRT) != (self.plan is not None):
            raise ValueError("`plan` belongs to the engine `tensorrt`, and to no other")
        if self.fused is None:
            return
        if self.engine == TENSORRT:
            raise ValueError("`fused` belongs to the engine `onnxruntime`, and to no other")
        if not self.head_dim // 2 == sum(self.fused.sections) == len(self.fused.frequencies):
            raise ValueError("`fused` needs head_dim / 2 frequencies, in three sections")


def engine_files(engine: str) -> tuple[str, str]:
    """What holds vision and decoder in a bundle of this engine."""
    return (PLANS[VISION], PLANS[DECODER]) if engine == TENSORRT else (VISION, DECODER)


def canonical_prompts() -> dict[str, str]:
    """Task -> prompt with the places `{label}` and `{box}`, made from fusar_edge.data.tasks."""
    prompts = {task: canonical_prompt(task, "{label}") for task in TASKS if task != "classify"}
    prompts["classify"] = canonical_prompt("classify", box=(1, 2, 3, 4)).replace("[1, 2, 3, 4]", "{box}")
    return prompts


class Prompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Chat template in pieces (Qwen2.5-VL's unless told otherwise) and the canonical prompt of each task."""

    before_image: str = chat.BEFORE_IMAGE
    after_image: str = chat.AFTER_IMAGE
    """Last piece of the prefix that all questions on one image share."""
    after_question: str = chat.AFTER_QUESTION
    tasks: dict[str, str] = msgspec.field(default_factory=canonical_prompts)

    def question(self, task: str, label: str = "ship", box: tuple[float, float, float, float] | None = None) -> str:
        """Prompt of a task; `box` in answer coordinates, needed by `classify` alone."""
        if task not in self.tasks:
            raise BundleError(f"task {task!r} has no prompt in this bundle; it has: {', '.join(self.tasks)}")
        place = json.dumps([round(v) for v in box]) if box else "{box}"
        return self.tasks[task].replace("{label}", label).replace("{box}", place)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its files were as sealed when it was opened."""

    folder: Path
    settings: BundleSettings
    prompts: Prompts
    radiometry: Radiometry
    manifest: Manifest = field(repr=False)
    sha256: str
    """Of manifest.json, which holds the hash of every other file: the bundle's identity."""

    def file(self, name: str) -> Path:
        return self.folder / name


def bundle_path(name: str | Path) -> Path:
    """Folder of a bundle; the word `default` is the one inside the package."""
    path = DEFAULT if str(name) == "default" else Path(name)
    if not (path / FILENAME).is_file():
        advice = (
            "this package was installed without its default bundle: install the wheel, or give the folder of a bundle"
            if path == DEFAULT
            else "give the folder that `fusar-edge build` made, or the word `default`"
        )
        raise BundleError(f"{path} is not a bundle (no {FILENAME} in it); {advice}")
    return path


def open_bundle(name: str | Path = "default") -> Bundle:
    """Read and check a bundle: format, stage, settings, then the SHA-256 of every file. BundleError names the file."""
    folder = bundle_path(name)
    manifest = read_manifest(folder, BundleError)
    path = folder / FILENAME
    if manifest.stage != STAGE:
        raise BundleError(f"{path}: stage {manifest.stage!r} is not a bundle; a bundle is made by `fusar-edge build`")
    version = manifest.settings.get("format")
    if version != FORMAT:
        raise BundleError(
            f"{path}: bundle format {version!r}; this fusar-edge reads format {FORMAT} only: "
            "install the fusar-edge that the bundle was made with, or build it again"
        )
    engine = str(manifest.settings.get("engine", ""))
    required = (*engine_files(engine), TOKENIZER, PROMPTS, RADIOMETRY)
    unsealed = [name for name in required if name not in manifest.files]
    if unsealed:
        raise BundleError(f"{path} does not list {', '.join(unsealed)}: the bundle is incomplete; build it again")
    verify_files(folder, manifest, BundleError)
    try:
        settings = msgspec.convert(manifest.settings, BundleSettings)
    except msgspec.ValidationError as problem:
        raise BundleError(f"{path}: settings: {problem}; build the bundle again") from None
    if settings.adapters is not None:
        check_adapters(folder, manifest, settings)
    prompts = _read_json(folder / PROMPTS, Prompts)
    radiometry = _read_json(folder / RADIOMETRY, Radiometry)
    return Bundle(folder, settings, prompts, radiometry, manifest, sha256_file(path))


def check_adapters(folder: Path, manifest: Manifest, settings: BundleSettings) -> None:
    """BundleError where the manifest does not list the files of the adapter that answers."""
    assert settings.adapters is not None
    name = settings.adapters.active
    needed = [f"{ADAPTERS}/{name}.json"] + ([] if settings.engine == TENSORRT else [f"{ADAPTERS}/{name}.data"])
    for file in needed:
        if file not in manifest.files:
            raise BundleError(
                f"{folder / FILENAME} does not list {file}, the adapter in use: the bundle is incomplete; build it "
                "again"
            )


def seal_bundle(
    folder: Path,
    settings: BundleSettings,
    *,
    prompts: Prompts | None = None,
    radiometry: Radiometry | None = None,
    recipe: str = "",
    inputs: dict[str, str] | None = None,
    figures: dict[str, Any] | None = None,
    packages: dict[str, str] | None = None,
) -> Manifest:
    """Make a bundle of a folder with graphs (or plans) and tokenizer.json: writes prompts, radiometry and manifest.

    `folder` is meant to be the work folder of fusar_edge.manifest.output_folder; every file in it is sealed.
    """
    needed = (*engine_files(settings.engine), TOKENIZER)
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise BundleError(f"{folder} lacks {', '.join(missing)}: a bundle needs both graphs and the tokenizer")
    _write_json(folder / PROMPTS, prompts or Prompts())
    _write_json(folder / RADIOMETRY, radiometry or Radiometry())
    manifest = Manifest(
        stage=STAGE,
        recipe=recipe,
        inputs=inputs or {},
        files=folder_hashes(folder),
        figures=figures or {},
        # Without what does not apply, so that a fusar-edge that does not know the field reads the bundle.
        settings={name: value for name, value in msgspec.to_builtins(settings).items() if value is not None},
        packages=packages or {},
    )
    write_manifest(folder, manifest)
    return manifest


def _read_json(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.MsgspecError as problem:
        raise BundleError(f"{path}: {problem}; build the bundle again") from None


def _write_json(path: Path, value: msgspec.Struct) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
