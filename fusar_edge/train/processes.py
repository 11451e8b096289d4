"""One process or several: what `accelerate launch` or `torchrun` started, who writes, whose weights are whole.

Every process computes the same figures; the first alone writes files, shows the bar and prints the result. A process
that fails ends the others, for that is what both launchers do.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import Trainer

from fusar_edge.errors import RecipeError

TIMEOUT = timedelta(hours=24)
"""How long a process waits for the others. The first decodes all images and writes the result; NCCL's own is 10 min."""

_FSDP_1 = (
    "FSDP 1 flattens frozen bfloat16 and trained float32 weights into one parameter, which it refuses: set "
    "fsdp_version: 2 in Accelerate's configuration, as export/accelerate/fsdp.yaml does"
)


def processes() -> PartialState:
    """The launch; several processes talk over NCCL, without a GPU over gloo. The first call opens their group."""
    return PartialState(cpu=not torch.cuda.is_available(), **InitProcessGroupKwargs(timeout=TIMEOUT).to_kwargs())


def sharded(model: nn.Module) -> bool:
    """After training: are its parameters parts of what they were (FSDP), or bf16 copies of it (DeepSpeed)?"""
    parts = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    return parts or processes().distributed_type == DistributedType.DEEPSPEED


def check_launch() -> None:
    """RecipeError for what the weights of stage 1 and 2 cannot be sharded with, by what the launcher has set."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    unsharded = (DistributedType.NO, DistributedType.MULTI_CPU)  # for which Accelerate leaves FSDP out
    if asked and os.environ.get("FSDP_VERSION", "1") != "2" and processes().distributed_type not in unsharded:
        raise RecipeError(_FSDP_1)


def check_strategy(trainer: Trainer) -> None:
    """`check_launch` of what the Trainer made of it; sums gradients in float32."""
    if not trainer.is_fsdp_enabled:
        return
    if not trainer.accelerator.is_fsdp2:
        raise RecipeError(_FSDP_1)
    if trainer.args.bf16:  # Accelerate's own policy would sum gradients, and return losses, in bfloat16
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = policy


def keep_float32_tables(model: nn.Module) -> None:
    """Put back the rotary frequencies where a strategy has cast the whole model (DeepSpeed): a position of 700 times a
    frequency with 8 bits is a wrong angle."""
    for module in model.modules():
        table, original = getattr(module, "inv_freq", None), getattr(module, "original_inv_freq", None)
        if isinstance(table, Tensor) and isinstance(original, Tensor) and table.dtype != original.dtype:
            module.inv_freq = original.to(table.device)


def trained_weights(trainer: Trainer) -> dict[str, Tensor]:
    """State of the trained model on the processor, whole, in master precision. Every process must call it."""
    model = trainer.model
    assert model is not None
    if not trainer.is_deepspeed_enabled:
        return {name: _whole(value.detach()) for name, value in model.state_dict().items()}
    from deepspeed.utils import safe_get_full_fp32_param

    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {name: safe_get_full_fp32_param(parameter).cpu() for name, parameter in trained}


def _whole(value: Any) -> Tensor:
    whole: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.cpu()
