"""Less memory, the same training: gradient checkpointing, frozen weights in bfloat16."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_data import RECIPE
from torch import Tensor
from typer.testing import CliRunner

from fusar_edge.cli import app
from fusar_edge.engines.shapes import ModelShape, shape_from_recipe
from fusar_edge.engines.training_memory import STRATEGIES, activations, count_parameters, plan_training
from fusar_edge.errors import DeviceError, InputError, RecipeError
from fusar_edge.model.checkpoint import new_model
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.recipes import shelf_folder
from fusar_edge.specs import LoraSpec, ModelRecipe, SftStageSpec, TrainSpec
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
    anchors = (torch.randn(81, 64, generator=generator).numpy(), torch.rand(81, 2, generator=generator).numpy())
    around = anchor_batch([anchors])
    around["anchor_positions"] = around["anchor_positions"].view(torch.int32)
    asked = writer.batch([writer.sequence([("How many?", "3"), ("Where?", "1, 2")])])
    return {"pixels": torch.rand(1, 1, 84, 84, generator=generator), **around, **asked}


def long_batch_of(model: FusarForConditionalGeneration) -> dict[str, Tensor]:
    """Two questions of hundreds of tokens, so that what grows with them is most of what is kept."""
    writer = SequenceWriter(TOKENIZER, model.cells)
    sequence = writer.sequence([("How many? " * 60, "3 4 5 " * 40), ("Where? " * 60, "1, 2 " * 20)])
    return batch_of(model) | writer.batch([sequence])


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
    assert kept < 0.7 * whole


def test_a_tower_without_trained_weights_keeps_nothing_of_its_blocks() -> None:
    model, _ = small_model("language")
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


# The plan -----------------------------------------------------------------------------------------------------------


def small_recipe(layers: int = 2) -> tuple[TrainSpec, ModelShape]:
    """As `small_model`, with dropout 0: the processor's dropout keeps a float32 mask where a GPU's keeps bytes."""
    text = RECIPE.replace("READING", "paper").replace("num_hidden_layers = 2", f"num_hidden_layers = {layers}")
    recipe = msgspec.toml.decode(text, type=ModelRecipe)
    common = msgspec.structs.replace(recipe.train, bf16=True, frozen="bfloat16", lora=LoraSpec(dropout=0.0))
    shape = shape_from_recipe(recipe, str(shelf_folder("export") / "fusar-tiny.toml"))
    return common, shape


def of_stage(trained: str, tokens: int = 2048) -> tuple[int, SftStageSpec]:
    return (1 if trained == "tlm" else 2), SftStageSpec(epochs=1, lr=0.1, max_tokens=tokens, reading="paper")


@pytest.mark.parametrize("trained", TRAINED[:2])
def test_counted_parameters_are_those_of_the_model_and_of_peft_s_lora(trained: str) -> None:
    common, shape = small_recipe()
    counts = count_parameters(shape, common.lora, *of_stage(trained))
    model, network = small_model(trained)
    assert counts.trained == sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert counts.tlm == sum(p.numel() for p in model.tlm.parameters())
    assert counts.lora == sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    layers = model.model.language_model.layers.parameters()
    assert counts.layers + counts.lora == sum(p.numel() for p in layers)
    assert counts.layers + counts.outside + counts.tlm + counts.lora == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("trained", TRAINED[:2])
def test_activations_are_what_autograd_keeps(trained: str, checkpointing: bool) -> None:
    common, shape = small_recipe()
    model, network = small_model(trained, frozen=torch.bfloat16)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = long_batch_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        _, _, kept = gradients(network, batch)
    stage, settings = of_stage(trained, batch["input_ids"].shape[1])
    counts = count_parameters(shape, common.lora, stage, settings)
    expected = activations(shape, counts, common, settings, checkpointing)
    if checkpointing:  # a layer that is computed again is kept in the backward pass, when the hooks are off
        two, three = (activations(*small_parts(n, trained, settings), False) for n in (2, 3))
        expected -= three - two
    answered = int((batch["labels"] != -100).sum())
    assert kept == pytest.approx(expected + 4 * answered * shape.language.vocab, rel=0.02)  # and log-probabilities


def small_parts(layers: int, trained: str, settings: SftStageSpec) -> tuple[Any, ...]:
    common, shape = small_recipe(layers)
    return shape, count_parameters(shape, common.lora, of_stage(trained)[0], settings), common, settings


def test_a_plan_of_7b_holds_the_base_once_in_bfloat16_and_masters_of_what_is_trained() -> None:
    planned = plan_training("h200", "fusar-gpt-7b", 2, 4)
    one, fsdp = planned.memory["one process"], planned.memory["fsdp"]
    assert planned.counts.trained == 20_185_088  # of PEFT: 28 layers, r = 8, seven linears each
    assert one.bytes_of("frozen weights") == 2 * 8_292_166_656  # published: 8.292 G
    assert one.bytes_of("moments") == 2 * one.bytes_of("gradients") == 8 * planned.counts.trained
    assert fsdp.bytes_of("frozen weights") == one.bytes_of("frozen weights") // 4
    assert set(planned.memory) == set(STRATEGIES)
    assert all(planned.otherwise[s] > 1.5 * planned.memory[s].needed for s in STRATEGIES)


def test_stage_1_trains_tlm_too_and_more_gpus_need_less_of_each() -> None:
    one, two = (plan_training("h200", "fusar-gpt-7b", stage, 4) for stage in (1, 2))
    assert one.counts.trained - two.counts.trained == one.counts.tlm == 64 * 14336 + 14336 + 14336 * 7168 + 7168
    many = plan_training("h200", "fusar-gpt-7b", 1, 8)
    for strategy in ("fsdp", "zero2"):
        assert many.memory[strategy].needed < one.memory[strategy].needed
    assert many.memory["ddp"].needed == one.memory["ddp"].needed


def test_the_verb_prints_the_plan_of_training_and_refuses_what_it_cannot_use() -> None:
    run = CliRunner()
    done = run.invoke(app, ["plan", "h200", "--model", "fusar-gpt-3b", "--train", "1", "--processes", "2"])
    assert done.exit_code == 0, done.output
    assert '"fits": ["one process", "ddp", "fsdp", "zero2"]' in done.stdout
    for words, error in (
        (["h200", "--train", "2", "--baked"], InputError),
        (["h200", "--processes", "2"], InputError),
        (["cpu", "--train", "2"], RecipeError),
        (["jetson-orin-nano-8gb", "--train", "2"], DeviceError),
    ):
        assert isinstance(run.invoke(app, ["plan", *words, "--model", "fusar-gpt-7b"]).exception, error)
