"""Stage 1 (knowledge injection) and stage 2 (task execution): supervised tuning on a manifest's own records.

Stage 1 trains TLM; in the official code's reading a LoRA of the language model as well, in the paper's nothing else.
Stage 2 freezes TLM and trains the LoRA (arXiv 2602.19190; REFERENCE section 1). Loss on answer tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.data import Dataset

from fusar_edge.errors import DataError
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.specs import LoraSpec, SftStageSpec
from fusar_edge.train.images import TrainingImage, View
from fusar_edge.train.loop import Progress, run_trainer
from fusar_edge.train.sequences import SequenceWriter, anchor_batch


class SftModel(nn.Module):
    """What the Trainer trains; its state is the trainable part alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        return {"loss": self.network(**batch).loss}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch overloads it
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if name in trained}

    def load_state_dict(self, state_dict: Any, strict: bool = False, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict=False, assign=assign)


class SftData(Dataset[TrainingImage]):
    """Images in a new order each epoch; item i depends on the seed and i alone."""

    def __init__(self, images: list[TrainingImage], steps: int, batch: int, seed: int) -> None:
        self.images, self.length = images, steps * batch
        epochs = -(-self.length // len(images))
        orders = [np.random.default_rng([seed, epoch]).permutation(len(images)) for epoch in range(epochs)]
        self.order = np.concatenate(orders)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> TrainingImage:
        return self.images[self.order[index]]


class SftCollator:
    def __init__(self, writer: SequenceWriter, spec: SftStageSpec, size: int) -> None:
        self.writer, self.spec, self.size = writer, spec, size

    def __call__(self, images: list[TrainingImage]) -> dict[str, Tensor]:
        pixels = np.stack([View().pixels(image.pixels, self.size) for image in images])
        asked = [[(t.question, t.answer) for t in _records(image, self.spec)] for image in images]
        anchors = [(image.anchors.features, image.anchors.positions) if image.anchors else None for image in images]
        batch = self.writer.batch([self.writer.sequence(q, self.spec.max_tokens) for q in asked])
        return {"pixels": torch.from_numpy(pixels)[:, None], **anchor_batch(anchors), **batch}


def _records(image: TrainingImage, spec: SftStageSpec) -> list[Any]:
    return [t for t in image.triplets if not spec.tasks or t.task in spec.tasks]


def language_lora(spec: LoraSpec) -> LoraConfig:
    """LoRA on the linears of the language model only; the vision tower has some of the same names."""
    return LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=rf".*language_model\..*\.({'|'.join(spec.target)})",
        bias="none",
        task_type="CAUSAL_LM",
    )


def with_lora(model: FusarForConditionalGeneration, spec: LoraSpec, adapter: Path) -> PeftModel:
    """A new LoRA, or the one in `adapter` taken out of the merged weights so that training goes on with it."""
    if not (adapter / "adapter_config.json").is_file():
        return get_peft_model(model, language_lora(spec))
    peft = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    with torch.no_grad():
        for module in peft.modules():
            if isinstance(module, LoraLayer):
                lora: Any = module
                lora.get_base_layer().weight -= lora.get_delta_weight("default")
    return peft


def set_trainable(model: FusarForConditionalGeneration, peft: PeftModel | None, tlm: bool) -> int:
    """Freeze all but the LoRA (where there is one) and, if asked, TLM. Returns the number of trained parameters."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = (peft is not None and "lora_" in name) or (tlm and name.startswith("tlm."))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def train_sft(
    model: FusarForConditionalGeneration,
    tokenizer: Path,
    images: list[TrainingImage],
    stage: int,
    spec: SftStageSpec,
    lora: LoraSpec,
    adapter: Path,
    work: Path,
    *,
    bf16: bool,
    log: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> tuple[PeftModel | None, dict[str, Any]]:
    """Train stage 1 or 2; `adapter` is the parent's, where it has one. Returns the LoRA, unmerged, and the figures."""
    images = [image for image in images if _records(image, spec)]
    if not images:
        raise DataError(f"no record has one of the tasks {', '.join(spec.tasks)} that stage {stage} trains")
    if stage == 1 and not any(image.anchors for image in images):
        raise DataError("stage 1 injects anchors, and no record that it trains on has `aef`; see `fusar-edge simulate`")
    peft = None if stage == 1 and spec.reading == "paper" else with_lora(model, lora, adapter)
    trained = set_trainable(model, peft, tlm=stage == 1)
    steps = max(1, round(len(images) * spec.epochs / spec.batch))
    steps = min(steps, spec.max_steps) if spec.max_steps > 0 else steps
    log(f"stage {stage}: {len(images)} images, {steps} steps of {spec.batch}, {trained:,} trained parameters")
    figures = run_trainer(
        SftModel(peft or model),
        SftData(images, steps, spec.batch, spec.seed),
        SftCollator(SequenceWriter(tokenizer, model.cells), spec, model.config.fusar["image_size"]),
        work,
        steps=steps,
        batch=spec.batch,
        lr=spec.lr,
        warmup=spec.warmup,
        decay=spec.weight_decay,
        scheduler="cosine",
        bf16=bf16,
        seed=spec.seed,
        progress=progress,
    )
    return peft, {**figures, "trained_parameters": trained, "images": len(images)}
