"""A checkpoint's weights one by one, its LoRA merged on the way: what never holds a 7B model in memory reads them here.

FOLDER                       that `fusar-edge train` wrote, or of the official form (adapter_config.json, ...)
hub:OWNER/REPO[/SUB/FOLDER]  the official form on the Hugging Face hub
base                         the recipe's published base alone, TLM the identity; `./base` is a folder
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig
from transformers.modeling_utils import no_init_weights

from fusar_edge.errors import CheckpointError
from fusar_edge.manifest import FILENAME, Manifest, read_manifest, sha256_file
from fusar_edge.model import film
from fusar_edge.model.adapter import CONFIG as LORA_CONFIG
from fusar_edge.model.adapter import WEIGHTS as LORA_WEIGHTS
from fusar_edge.model.adapter import Lora, open_lora
from fusar_edge.model.agreement import check_config
from fusar_edge.model.hub import ADAPTER_FILES, base_folder, local_folder
from fusar_edge.model.network import FusarForConditionalGeneration, with_fusar
from fusar_edge.model.shards import INDEX, Shards, has_weights, open_shards
from fusar_edge.model.shards import WEIGHTS as WHOLE
from fusar_edge.specs import ModelRecipe

BASE = "base"
"""The checkpoint that is the recipe's published base."""

HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
_TLM = "tlm.film_mlp."
_ADAPTER = (*ADAPTER_FILES, "tokenizer.json", FILENAME)

Progress = Callable[[int, int, str], None]
"""(bytes done, bytes in all, name of the file)."""


class Weights:
    """Tensors in float32 by module name, such as `model.language_model.layers.0.self_attn.q_proj.weight`.

    Between two calls nothing is held but names and shapes, nor is a file open or mapped. `lm_head.weight` is there
    where it is tied to the embedding too. Made by `open_weights`, which has checked names, shapes and adapter.
    """

    config: Qwen2_5_VLConfig
    """With `fusar` = {"image_size", "sigma", "hidden_mult"}."""
    tokenizer: Path
    """tokenizer.json."""
    manifest: Manifest | None
    """Of a folder that `fusar-edge train` wrote."""
    names: frozenset[str]
    adapter: Path | None
    """Folder of the LoRA that is merged on the way."""

    def __init__(
        self,
        config: Qwen2_5_VLConfig,
        tokenizer: Path,
        shapes: dict[str, tuple[int, ...]],
        shards: Shards,
        files: dict[str, Path],
        *,
        manifest: Manifest | None = None,
        lora: Lora | None = None,
        folder: Path | None = None,
        film_file: Path | None = None,
    ) -> None:
        self.config, self.tokenizer, self.manifest = config, tokenizer, manifest
        self.names, self.adapter = frozenset(shapes), folder if lora else None
        self._shapes, self._shards, self._files = shapes, shards, files
        self._lora, self._film = lora, film_file
        self._apart: frozenset[str] = frozenset()
        self._tied = tied(config)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def tensor(self, name: str) -> Tensor:
        """The whole tensor: float32, contiguous, of its own memory."""
        return self._read(name, None, None)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a tensor, as `tensor` gives it; no other row is read."""
        return self._read(name, start, stop)

    @property
    def lora_names(self) -> frozenset[str]:
        """Weights that the LoRA changes."""
        return self._lora.names if self._lora is not None else frozenset()

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """The LoRA of a weight: A [rank, in] and scale * B [out, rank]; None where it leaves the weight alone."""
        return None if self._lora is None else self._lora.factors(name)

    def apart(self, names: Collection[str]) -> Weights:
        """The same weights, but those of `names` as the base has them: their LoRA is to be had from `factors`."""
        found = copy.copy(self)
        found._apart = frozenset(names)
        return found

    def bytes_fp32(self) -> int:
        """Of all tensors in float32; a tied head counts once, with the embedding."""
        counted = self.names - ({HEAD} if self._tied else set())
        return 4 * sum(math.prod(self._shapes[name]) for name in counted)

    def tlm_state(self) -> dict[str, Tensor]:
        """State of `film_mlp`."""
        keys = film.film_shapes(self.config.vision_config.out_hidden_size, self.config.fusar["hidden_mult"])
        return {key: self.tensor(_TLM + key) for key in keys}

    def hashes(self, progress: Progress | None = None) -> dict[str, str]:
        """Name -> SHA-256 of every file that decides the weights, and `parent/` of what the folder was made from."""
        sizes = {name: path.stat().st_size for name, path in self._files.items()}
        found, done = {}, 0
        for name, path in self._files.items():
            if progress is not None:
                progress(done, sum(sizes.values()), name)
            found[name] = sha256_file(path)
            done += sizes[name]
        if progress is not None:
            progress(done, done, "")
        inputs = self.manifest.inputs if self.manifest else {}
        return found | {f"parent/{name}": value for name, value in inputs.items()}

    def _read(self, name: str, start: int | None, stop: int | None) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        stored = EMBEDDING if name == HEAD and self._tied else name
        if stored not in self._shards:
            return self._film_tensor(name.removeprefix(_TLM))[start:stop].to(torch.float32, copy=True).contiguous()
        value = self._shards.tensor(stored, start, stop)
        if self._lora is not None and stored not in self._apart:
            self._lora.add_to(value, stored, start, stop)
        return value

    def _film_tensor(self, key: str) -> Tensor:
        if self._film is not None:
            return film.read_film(self._film)[key]
        fusar = self.config.fusar
        return film.identity_film(self.config.vision_config.out_hidden_size, fusar["hidden_mult"])[key]


def open_weights(checkpoint: str | Path, recipe: ModelRecipe, *, sigma: float | None = None) -> Weights:
    """The weights of a checkpoint of this recipe. CheckpointError for what is wrong with it, before any long work.

    `sigma`: of a legacy official folder, which does not say it (`--sigma`).
    """
    if is_base(checkpoint, recipe):
        _check_word(str(recipe.base))
        return base_weights(recipe, sigma)
    folder = local_folder(checkpoint)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder: give one that `fusar-edge train` wrote, one of the official form, "
            f"hub:OWNER/REPO/SUB/FOLDER, or `{BASE}` for the recipe's published base"
        )
    if is_official(folder):
        return _official(folder, recipe, sigma)
    return own_weights(folder, recipe, sigma)


def base_weights(recipe: ModelRecipe, sigma: float | None = None) -> Weights:
    """Of the recipe's published base alone."""
    return _official(None, recipe, sigma)


def is_base(checkpoint: str | Path | None, recipe: ModelRecipe) -> bool:
    """The word, as it was given: a Path is a folder, also that of `./base`, which has the word's letters."""
    return isinstance(checkpoint, str) and checkpoint == BASE and recipe.base is not None


def _check_word(published: str) -> None:
    """CheckpointError where the word may be meant as a folder, unless that folder is the published base itself."""
    folder = Path(BASE)
    if folder.is_dir() and not (Path(published).is_dir() and folder.samefile(published)):
        raise CheckpointError(
            f"`{BASE}` means the recipe's published base, {published}, and {folder.absolute()} is a folder: give "
            f"./{BASE} for the folder; for the published base rename the folder, or start in another one"
        )


def is_official(folder: Path) -> bool:
    """The official form at the top of the folder, rather than a whole model."""
    return not has_weights(folder) and any((folder / name).is_file() for name in ADAPTER_FILES)


def read_config(folder: Path) -> Qwen2_5_VLConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json: copy the folder again")
    try:
        kind = json.loads(path.read_text()).get("model_type")
        if kind != Qwen2_5_VLConfig.model_type:
            raise CheckpointError(f"{path} is of model_type {kind!r}; allowed is {Qwen2_5_VLConfig.model_type!r}")
        return Qwen2_5_VLConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise CheckpointError(f"{path} does not load: {problem}") from None


def tied(config: Qwen2_5_VLConfig) -> bool:
    return bool(config.get_text_config(decoder=True).tie_word_embeddings)


def module_shapes(config: Qwen2_5_VLConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of FUSAR-GPT in this configuration, `lm_head.weight` included."""
    with no_init_weights(), torch.device("meta"):
        model = FusarForConditionalGeneration(config)
    return {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}


def own_weights(folder: Path, recipe: ModelRecipe | None, sigma: float | None = None) -> Weights:
    """Of a whole model that `fusar-edge train` wrote; compared with the recipe where one is given."""
    manifest = read_manifest(folder, CheckpointError)
    if not has_weights(folder):
        raise CheckpointError(f"{folder} holds no {WHOLE}: give a folder that `fusar-edge train` wrote")
    config = read_config(folder)
    if not isinstance(getattr(config, "fusar", None), dict):
        raise CheckpointError(f"{folder / 'config.json'} has no `fusar`: it is not of a model that fusar-edge trained")
    if recipe is not None:
        check_config(config, recipe, folder)
    if sigma is not None and sigma != config.fusar["sigma"]:
        raise CheckpointError(f"--sigma {sigma:g}: {folder} has sigma {config.fusar['sigma']:g}; leave --sigma out")
    shards, shapes = open_shards(folder), module_shapes(config)
    _check_complete(folder, shards, shapes, config)
    names = sorted({*(p.name for p in shards.files), *(p.name for p in folder.glob("*.json"))})
    files = {f"checkpoint/{name}": folder / name for name in names}
    return Weights(config, _tokenizer(folder), shapes, shards, files, manifest=manifest)


def _official(folder: Path | None, recipe: ModelRecipe, sigma: float | None) -> Weights:
    base = base_folder(recipe)
    tlm = film.recipe_tlm(recipe) if folder is None else film.read_tlm_config(folder, recipe, sigma)
    config = with_fusar(read_config(base), tlm.image_size, tlm.sigma, tlm.hidden_mult)
    check_config(config, recipe, base)
    shards, shapes = open_shards(base), module_shapes(config)
    _check_complete(base, shards, {k: v for k, v in shapes.items() if not k.startswith(_TLM)}, config)
    fixed = [path for name in ("config.json", "tokenizer.json", INDEX) if (path := base / name).is_file()]
    files = {f"base/{path.name}": path for path in (*fixed, *shards.files)}
    if folder is None:
        return Weights(config, _tokenizer(base), shapes, shards, files)
    if (folder / LORA_WEIGHTS).is_file() and not (folder / LORA_CONFIG).is_file():
        raise CheckpointError(f"{folder} has {LORA_WEIGHTS} and no {LORA_CONFIG}: copy the folder again")
    films = folder / film.FILM
    if films.is_file():
        film.check_film(films, film.film_shapes(config.vision_config.out_hidden_size, tlm.hidden_mult))
    held = {k: v for k, v in shapes.items() if k in shards and not (tied(config) and k in (HEAD, EMBEDDING))}
    lora = open_lora(folder, held, str(recipe.base)) if (folder / LORA_CONFIG).is_file() else None
    return Weights(
        config,
        _tokenizer(folder, base),
        shapes,
        shards,
        files | {f"adapter/{name}": folder / name for name in _ADAPTER if (folder / name).is_file()},
        manifest=read_manifest(folder, CheckpointError) if (folder / FILENAME).is_file() else None,
        lora=lora,
        folder=folder,
        film_file=films if films.is_file() else None,
    )


def _check_complete(folder: Path, shards: Shards, shapes: dict[str, tuple[int, ...]], config: Qwen2_5_VLConfig) -> None:
    """Every tensor that the configuration makes is there in its shape, and no other."""
    needed: dict[str, Any] = {k: v for k, v in shapes.items() if not (k == HEAD and tied(config))}
    for name, shape in needed.items():
        if name not in shards:
            raise CheckpointError(f"{folder} lacks the tensor {name} that its config.json makes: copy the folder again")
        if shards.shape(name) != shape:
            where = shards.stored[name].path
            raise CheckpointError(f"{where}: {name} is {list(shards.shape(name))}, config.json makes it {list(shape)}")
    for name, stored in shards.stored.items():
        if name not in shapes and not name.endswith(".inv_freq"):
            raise CheckpointError(f"{stored.path} holds {stored.key}, which its config.json has no place for")


def _tokenizer(*folders: Path) -> Path:
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            return folder / "tokenizer.json"
    raise CheckpointError(f"no tokenizer.json in {' or '.join(map(str, folders))}: copy it from the published model")
