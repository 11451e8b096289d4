"""One run of the Hugging Face Trainer: resumable, in one process or several, with a log for people and programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from fusar_edge.train.processes import TIMEOUT, check_strategy, keep_float32_tables, processes, trained_weights

Progress = Callable[[str, int, int], None]
"""What is going on, steps done, steps in all."""

DONE = "done.json"
WEIGHTS = "weights.pt"


@dataclass(frozen=True)
class Schedule:
    """What a run does, beside its model and its data."""

    steps: int
    batch: int
    """Items of a process that are computed at once."""
    lr: float
    warmup: float
    decay: float
    scheduler: str
    seed: int
    accumulate: int = 1
    """Batches of a process in a step."""


class _Arguments(TrainingArguments):
    """Of one GPU a process, also where one process sees several and Trainer would take torch's DataParallel."""

    @property
    def device(self) -> torch.device:
        """The processor without a number: torch.load knows no `cpu:0`, which the second process would ask it for."""
        found: torch.device = super().device
        return torch.device("cpu") if found.type == "cpu" else found

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)


class _OrderedTrainer(Trainer):
    """Items in their own order: the data set draws them itself. Of N processes with batches of b, process p takes
    items b p to b (p + 1) - 1 of every N b, so that a step sees what one process with batches of N b would."""

    logged: tuple[float, int] = (0.0, 0)
    """Sum of the losses, and steps, at the last log."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(cast(Sized, self.train_dataset))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """None: a checkpoint of stage 1 or 2 holds the trained part alone (Trainer asks a plain module for attributes
        of its own models there, and a run that was killed could not go on)."""

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Losses with all their digits: Trainer rounds them to four decimals."""
        if "loss" in logs:
            total, step = self._total_loss_scalar, self.state.global_step
            logs["loss"] = (total - self.logged[0]) / (step - self.logged[1])
            self.logged = total, step
        super().log(logs, start_time)

    def mean_loss(self) -> float:
        """Over all steps, also those of a run that was killed: they are in the state of its checkpoint."""
        last, total = 0, 0.0
        for row in self.state.log_history:
            if "loss" in row:
                step = int(row["step"])
                last, total = step, total + row["loss"] * (step - last)
        return total / max(last, 1)


class _Reporter(TrainerCallback):
    """Losses into `log.jsonl`, steps to `progress`; a line of the log at each checkpoint and at the end."""

    def __init__(self, path: Path, extra: Callable[[], dict[str, float]], progress: Progress | None) -> None:
        self.path, self.extra, self.progress, self.start = path, extra, progress, time.monotonic()
        self.loss = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        if model is not None:
            keep_float32_tables(model)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True
        if self.progress:
            self.progress(f"{self.path.parent.name}{self.loss}", state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
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
    schedule: Schedule,
    *,
    bf16: bool,
    extra: Callable[[], dict[str, float]] = dict,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train `model` in place; `work` holds checkpoints and `log.jsonl`, and afterwards the weights alone.

    A run that was killed goes on from its last checkpoint; one that is done loads its weights and returns. With FSDP or
    DeepSpeed `model` is of no use afterwards (`processes.sharded`): the same call on a new one gives its weights.
    """
    done = work / DONE
    if done.is_file():
        model.load_state_dict(torch.load(work / WEIGHTS, weights_only=True))
        figures: dict[str, Any] = json.loads(done.read_text())
        return figures
    work.mkdir(parents=True, exist_ok=True)
    trainer = _OrderedTrainer(
        model=model,
        args=_arguments(work, schedule, bf16),
        train_dataset=data,
        data_collator=collator,
        callbacks=[_Reporter(work / "log.jsonl", extra, progress)],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every log on stdout, which is for the result
    check_strategy(trainer)
    launch = processes()
    torch.manual_seed(schedule.seed + launch.process_index)  # dropout of each process is its own
    resumed = last_checkpoint(work)
    trainer.logged = 0.0, int(resumed.name.rpartition("-")[2]) if resumed else 0
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    losses = {"loss": round(trainer.mean_loss(), 4), **{k: round(v, 4) for k, v in extra().items()}}
    figures = {"steps": schedule.steps, **losses}
    weights = trained_weights(trainer)
    if launch.is_main_process:
        torch.save(weights, work / WEIGHTS)
        done.write_text(json.dumps(figures))
    launch.wait_for_everyone()
    return figures


def holds_training(work: Path) -> bool:
    """Has a run below `work` come to its first checkpoint?"""
    return any(last_checkpoint(path) or (path / DONE).is_file() for path in (work, *work.glob("*/")))


def last_checkpoint(work: Path) -> Path | None:
    """The newest that is whole: its state is written last."""
    found = [path.parent for path in work.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _arguments(work: Path, schedule: Schedule, bf16: bool) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    return _Arguments(
        output_dir=str(work),
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.batch,
        gradient_accumulation_steps=schedule.accumulate,
        average_tokens_across_devices=True,
        learning_rate=schedule.lr,
        warmup_steps=round(schedule.warmup * schedule.steps),
        weight_decay=schedule.decay,
        lr_scheduler_type=schedule.scheduler,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        bf16=bf16,
        use_cpu=not gpu,
        seed=schedule.seed,
        logging_steps=max(1, min(50, schedule.steps // 20)),
        save_steps=max(1, min(200, schedule.steps // 4)),
        save_total_limit=1,
        save_safetensors=False,  # tied embeddings share memory, which safetensors refuses here
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=gpu,
        ddp_timeout=round(TIMEOUT.total_seconds()),
        ddp_find_unused_parameters=False,  # every trained parameter takes part in every step
        report_to=[],
        disable_tqdm=True,
        label_names=[],
    )
