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
from fusar_edge.specs import LoraSpec, SftStageSpec, TrainSpec
from fusar_edge.train.images import TrainingImage, View
from fusar_edge.train.loop import Progress, Schedule, run_trainer
from fusar_edge.train.processes import processes
from fusar_edge.train.sequences import SequenceWriter, anchor_batch


class SftModel(nn.Module):
    """What the Trainer trains; its state is the trainable part alone. The loss is the sum over a batch's answer tokens
    over those of the whole step, of all its batches and processes: the mean that one process with all the images has
    (Trainer counts the tokens and undoes the mean over processes)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, num_items_in_batch: Tensor | None = None, **batch: Any) -> dict[str, Tensor]:
        batch["anchor_positions"] = batch["anchor_positions"].view(torch.float32)
        output = self.network(**batch)
        if num_items_in_batch is None:
            return {"loss": output.loss}
        answered = len(output.logits)
        if not answered:  # every record of this process was too long; its share of the gradient is 0, not NaN
            return {"loss": output.logits.float().sum()}
        return {"loss": output.loss * (answered / num_items_in_batch)}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch overloads it
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if name in trained}

    def load_state_dict(self, state_dict: Any, strict: bool = False, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict=False, assign=assign)


class SftData(Dataset[TrainingImage]):
    """Images in a new order each epoch; item i depends on the seed and i alone."""

    def __init__(self, images: list[TrainingImage], length: int, seed: int) -> None:
        self.images, self.length = images, length
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
        around = anchor_batch(anchors)
        # As integers: FSDP and DeepSpeed round every float of a batch to bfloat16, by up to 0.07 patches at 504 px.
        around["anchor_positions"] = around["anchor_positions"].view(torch.int32)
        return {"pixels": torch.from_numpy(pixels)[:, None], **around, **batch}


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


def with_lora(model: FusarForConditionalGeneration, spec: LoraSpec, adapter: Path | None) -> PeftModel:
    """A new LoRA, or the one in `adapter` (`open_parent` has looked at it) taken out of the merged weights so that
    training goes on with it."""
    if adapter is None:
        return get_peft_model(model, language_lora(spec))
    peft = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    loras = [module for module in model.modules() if isinstance(module, LoraLayer)]
    with torch.no_grad():
        for module in loras:
            lora: Any = module
            lora.get_base_layer().weight -= lora.get_delta_weight("default")
    return peft


def set_trainable(
    model: FusarForConditionalGeneration, peft: PeftModel | None, tlm: bool, frozen: torch.dtype = torch.float32
) -> int:
    """Freeze all but the LoRA (where there is one) and, if asked, TLM. Returns the number of trained parameters.

    `frozen`: type of the weights that are not trained, but of TLM's, which a checkpoint holds in float32.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad = (peft is not None and "lora_" in name) or (tlm and name.startswith("tlm."))
        if not parameter.requires_grad and not name.startswith("tlm."):
            parameter.data = parameter.data.to(frozen)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def train_sft(
    model: FusarForConditionalGeneration,
    tokenizer: Path,
    images: list[TrainingImage],
    stage: int,
    spec: SftStageSpec,
    common: TrainSpec,
    adapter: Path | None,
    work: Path,
    *,
    log: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> tuple[PeftModel | None, dict[str, Any]]:
    """Train stage 1 or 2; `adapter`: the parent's LoRA, if any. Returns the LoRA, unmerged, and the figures."""
    images = [image for image in images if _records(image, spec)]
    if not images:
        raise DataError(f"no record has one of the tasks {', '.join(spec.tasks)} that stage {stage} trains")
    if stage == 1 and not any(image.anchors for image in images):
        raise DataError("stage 1 injects anchors, and no record that it trains on has `aef`; see `fusar-edge simulate`")
    torch.manual_seed(spec.seed)  # a new LoRA is the same in every process
    peft = None if stage == 1 and spec.reading == "paper" else with_lora(model, common.lora, adapter)
    trained = set_trainable(model, peft, tlm=stage == 1, frozen=getattr(torch, common.frozen))
    if common.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    schedule, together = _schedule(spec, len(images))
    log(f"stage {stage}: {len(images)} images, {schedule.steps} steps of {together}, {trained:,} trained parameters")
    figures = run_trainer(
        SftModel(peft or model),
        SftData(images, schedule.steps * together, spec.seed),
        SftCollator(SequenceWriter(tokenizer, model.cells), spec, model.config.fusar["image_size"]),
        work,
        schedule,
        bf16=common.bf16,
        progress=progress,
    )
    return peft, {**figures, "trained_parameters": trained, "images": len(images)}


def _schedule(spec: SftStageSpec, images: int) -> tuple[Schedule, int]:
    """Of each process, and the images of a step in all of them together."""
    together = spec.batch * spec.accumulate * processes().num_processes
    steps = max(1, round(images * spec.epochs / together))
    steps = min(steps, spec.max_steps) if spec.max_steps > 0 else steps
    schedule = Schedule(
        steps,
        spec.batch,
        spec.lr,
        warmup=spec.warmup,
        decay=spec.weight_decay,
        scheduler="cosine",
        seed=spec.seed,
        accumulate=spec.accumulate,
    )
    return schedule, together
