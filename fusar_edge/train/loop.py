"""One run of the Hugging Face Trainer: resumable, with a log that a person and a program can read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

Progress = Callable[[str, int, int], None]
"""What is going on, steps done, steps in all."""

DONE = "done.json"
WEIGHTS = "weights.pt"


class _OrderedTrainer(Trainer):
    """Items in their own order: the data set draws them itself."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(cast(Sized, self.train_dataset))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """None: a checkpoint of stage 1 or 2 holds the trained part alone (Trainer asks a plain module for attributes
        of its own models there, and a run that was killed could not go on)."""


class _Reporter(TrainerCallback):
    """Losses into `log.jsonl`, steps to `progress`."""

    def __init__(self, path: Path, extra: Callable[[], dict[str, float]], progress: Progress | None) -> None:
        self.path, self.extra, self.progress, self.start = path, extra, progress, time.monotonic()
        self.loss = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress:
            self.progress(f"{self.path.parent.name}{self.loss}", state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.loss = f", loss {logs['loss']:.3f}"
        row = {"step": state.global_step, "seconds": round(time.monotonic() - self.start, 1), **(logs or {})}
        row |= {k: round(v, 4) for k, v in self.extra().items()}
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")


def run_trainer(
    model: nn.Module,
    data: Dataset[Any],
    collator: Callable[[list[Any]], Any],
    work: Path,
    *,
    steps: int,
    batch: int,
    lr: float,
    warmup: float,
    decay: float,
    scheduler: str,
    bf16: bool,
    seed: int,
    extra: Callable[[], dict[str, float]] = dict,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train `model` in place; `work` holds checkpoints and `log.jsonl`, and afterwards the weights alone.

    A run that was killed goes on from its last checkpoint; one that is done loads its weights and returns.
    """
    done = work / DONE
    if done.is_file():
        model.load_state_dict(torch.load(work / WEIGHTS, weights_only=True))
        figures: dict[str, Any] = json.loads(done.read_text())
        return figures
    work.mkdir(parents=True, exist_ok=True)
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=lr,
        warmup_steps=round(warmup * steps),
        weight_decay=decay,
        lr_scheduler_type=scheduler,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=max(1, min(50, steps // 20)),
        save_steps=max(1, min(200, steps // 4)),
        save_total_limit=1,
        save_safetensors=False,  # tied embeddings share memory, which safetensors refuses here
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=True,
        label_names=[],
    )
    trainer = _OrderedTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=collator,
        callbacks=[_Reporter(work / "log.jsonl", extra, progress)],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every log on stdout, which is for the result
    result = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)))
    figures = {"steps": steps, "loss": round(result.training_loss, 4), **{k: round(v, 4) for k, v in extra().items()}}
    torch.save({k: v.cpu() for k, v in model.state_dict().items()}, work / WEIGHTS)
    done.write_text(json.dumps(figures))
    return figures
