"""Less memory, the same training: gradient checkpointing, frozen weights in bfloat16."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_data import RECIPE
from torch import Tensor

from fusar_edge.model.checkpoint import new_model
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.recipes import shelf_folder
from fusar_edge.specs import LoraSpec, ModelRecipe
from fusar_edge.train.processes import keep_float32_tables
from fusar_edge.train.sequences import SequenceWriter, anchor_batch
from fusar_edge.train.sft import SftModel, language_lora, set_trainable

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
TOKENIZER = shelf_folder("export") / "fusar-tiny" / "tokenizer.json"
TRAINED = ["tlm", "language", "vision and language"]
"""What each test trains: TLM through a frozen language model; a LoRA; a LoRA of the tower as well (legacy adapters)."""


def small_model(trained: str, frozen: torch.dtype = torch.float32) -> tuple[FusarForConditionalGeneration, SftModel]:
    recipe = msgspec.toml.decode(RECIPE.replace("READING", "paper"), type=ModelRecipe)
    model = new_model(recipe, TOKENIZER)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.tlm.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    spec = LoraSpec(dropout=0.0)
    everywhere = LoraConfig(r=spec.r, lora_alpha=spec.alpha, target_modules=list(spec.target))
    lora = {"language": language_lora(spec), "vision and language": everywhere}
    torch.manual_seed(2)
    peft = get_peft_model(model, lora[trained]) if trained in lora else None
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # it starts at 0, and so would every gradient of A
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    set_trainable(model, peft, tlm=trained == "tlm", frozen=frozen)
    return model, SftModel(peft or model).train()


def batch_of(model: FusarForConditionalGeneration) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    writer = SequenceWriter(TOKENIZER, model.cells)
    anchors = (torch.randn(9, 64, generator=generator).numpy(), torch.rand(9, 2, generator=generator).numpy())
    around = anchor_batch([anchors])
    around["anchor_positions"] = around["anchor_positions"].view(torch.int32)
    asked = writer.batch([writer.sequence([("How many?", "3"), ("Where?", "1, 2")])])
    return {"pixels": torch.rand(1, 1, 84, 84, generator=generator), **around, **asked}


def gradients(network: SftModel, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients by name, and bytes that were kept for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(**dict(batch))["loss"]
    network.zero_grad()
    loss.backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in found.values())
    return loss.detach(), found, sum(kept.values())  # type: ignore[return-value]


@pytest.mark.parametrize("trained", TRAINED)
def test_checkpointing_keeps_less_and_changes_neither_loss_nor_gradients(trained: str) -> None:
    model, network = small_model(trained)
    batch = batch_of(model)
    loss, expected, whole = gradients(network, batch)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-4
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again, found, kept = gradients(network, batch)
    assert torch.equal(loss, again)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    assert kept < 0.5 * whole


def test_a_tower_without_trained_weights_keeps_nothing_of_its_blocks() -> None:
    model, network = small_model("language")
    seen: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        visual = model.visual_tokens(batch_of(model)["pixels"])
    assert not visual.requires_grad
    assert seen == []


@pytest.mark.parametrize("trained", TRAINED)
def test_what_is_not_trained_is_bfloat16_and_what_is_or_what_tlm_has_is_float32(trained: str) -> None:
    model, network = small_model(trained, frozen=torch.bfloat16)
    for name, parameter in model.named_parameters():
        whole = parameter.requires_grad or name.startswith("tlm.")
        assert parameter.dtype == (torch.float32 if whole else torch.bfloat16), name
    with torch.autocast("cpu", torch.bfloat16):
        loss, found, _ = gradients(network, batch_of(model))
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    plain, reference = small_model(trained)
    expected, _, _ = gradients(reference, batch_of(plain))
    assert float(loss) == pytest.approx(float(expected), rel=0.01)


def test_a_process_without_answer_tokens_adds_nothing_and_no_nan() -> None:
    model, network = small_model("language")
    batch = batch_of(model)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = network(num_items_in_batch=torch.tensor(7), **batch)["loss"]
    loss.backward()
    assert float(loss) == 0
    assert all(not p.grad.any() for p in network.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in network.parameters())


def test_rotary_frequencies_survive_a_cast_of_the_whole_model() -> None:
    model, network = small_model("tlm")
    expected = model.model.language_model.rotary_emb.inv_freq.clone()
    network.bfloat16()
    assert model.model.language_model.rotary_emb.inv_freq.dtype == torch.bfloat16
    keep_float32_tables(network)
    assert torch.equal(model.model.language_model.rotary_emb.inv_freq, expected)
