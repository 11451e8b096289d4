"""FUSAR-GPT: Hugging Face Qwen2.5-VL whose visual tokens pass through TLM (arXiv 2602.19190)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.utils.generic import ModelOutput

from fusar_edge.model.tlm import TokenModulation
from fusar_edge.model.vision import FixedGridVision


@dataclass
class FusarOutput(ModelOutput):
    """What a training step reads."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    """[B, N, V], or [answer tokens, V] where labels were given."""
    visual_tokens: Tensor | None = None
    """[B, T, C] after TLM."""
    visual_states: Tensor | None = None
    """[B, T, C] at the image's places after `states_after` layers of the language model, where that was asked."""


class FusarForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL plus `tlm`. One square grey image per sequence, of `config.fusar["image_size"]` pixels.

    `config.fusar` = {"image_size", "sigma", "hidden_mult"} rides along in `config.json`.
    """

    def __init__(self, config: Qwen2_5_VLConfig) -> None:
        super().__init__(config)
        fusar = config.fusar
        patches = fusar["image_size"] // config.vision_config.patch_size
        cells = patches // config.vision_config.spatial_merge_size
        self.tlm = TokenModulation(
            config.vision_config.out_hidden_size, patches, cells, fusar["sigma"], fusar["hidden_mult"]
        )
        self._fixed_vision: tuple[FixedGridVision, ...] = ()
        self.post_init()

    @property
    def cells(self) -> int:
        """Visual tokens along one side of the image."""
        return self.tlm.merged

    def visual_tokens(
        self,
        pixels: Tensor,
        anchors: Tensor | None = None,
        anchor_positions: Tensor | None = None,
        anchor_mask: Tensor | None = None,
    ) -> Tensor:
        """pixels [B, 1, size, size] grey 0..1 -> [B, T, C]. Without anchors: plain Qwen2.5-VL, bit for bit."""
        if not self._fixed_vision:  # in a tuple, so that its parameters are not registered twice
            self._fixed_vision = (FixedGridVision(self.model.visual, self.config.fusar["image_size"]),)
        vision = self._fixed_vision[0]
        if vision.order.device != pixels.device:
            vision.to(pixels.device)
        tokens: Tensor = vision(pixels)
        if anchors is None:
            return tokens
        modulated: Tensor = self.tlm(tokens, anchors, anchor_positions, anchor_mask)
        return modulated

    def forward(
        self,
        input_ids: Tensor,
        pixels: Tensor,
        position_ids: Tensor,
        anchors: Tensor | None = None,
        anchor_positions: Tensor | None = None,
        anchor_mask: Tensor | None = None,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> FusarOutput:
        """input_ids [B, N] padded on the right, position_ids [3, B, N], labels [B, N] with -100 off the answer.

        attention_mask [B, 1, N, N] bool where questions share a prefix; else none: attention is causal, and padding on
        the right is invisible to what comes before it.
        """
        visual = self.visual_tokens(pixels, anchors, anchor_positions, anchor_mask)
        return self.answer(visual, input_ids, position_ids, labels, attention_mask)

    def answer(
        self,
        visual: Tensor,
        input_ids: Tensor,
        position_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        states_after: int | None = None,
    ) -> FusarOutput:
        """The language model on visual tokens [B, T, C] that are at hand; the rest as `forward`."""
        embeds = self.get_input_embeddings()(input_ids)
        image = (input_ids == self.config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(image, visual.to(embeds.dtype))
        output = self.model.language_model(
            inputs_embeds=embeds,
            position_ids=position_ids,
            attention_mask=attention_mask,
            use_cache=False,
            output_hidden_states=states_after is not None,
        )
        hidden, states = output.last_hidden_state, None
        if states_after is not None:
            states = output.hidden_states[states_after][image[..., 0]].reshape(visual.shape)
        if labels is None:
            return FusarOutput(logits=self.lm_head(hidden), visual_tokens=visual, visual_states=states)
        target = labels[:, 1:]
        answer = target != -100
        logits = self.lm_head(hidden[:, :-1][answer])  # only where there is something to learn
        loss = nn.functional.cross_entropy(logits.float(), target[answer])
        return FusarOutput(loss=loss, logits=logits, visual_tokens=visual, visual_states=states)


def network_config(
    vision: dict[str, Any],
    text: dict[str, Any],
    image_size: int,
    sigma: float,
    hidden_mult: int,
    tokens: dict[str, int],
) -> Qwen2_5_VLConfig:
    """Config of a model from scratch. `tokens`: vocab_size, bos, eos, image, vision_start, vision_end, video ids."""
    config = Qwen2_5_VLConfig(
        vision_config={"spatial_merge_size": 2, "temporal_patch_size": 2, "patch_size": 14, **vision},
        text_config={
            "rope_scaling": {"type": "mrope", "mrope_section": text.pop("mrope_section")},
            "rope_theta": 1_000_000.0,
            "max_position_embeddings": 4096,
            "vocab_size": tokens["vocab_size"],
            **text,
        },
        image_token_id=tokens["image"],
        video_token_id=tokens["video"],
        vision_start_token_id=tokens["vision_start"],
        vision_end_token_id=tokens["vision_end"],
        tie_word_embeddings=True,
    )
    config.text_config.tie_word_embeddings = True
    config.text_config.bos_token_id, config.text_config.eos_token_id = tokens["bos"], tokens["eos"]
    config.fusar = {"image_size": image_size, "sigma": sigma, "hidden_mult": hidden_mult}
    return config


def with_fusar(config: Qwen2_5_VLConfig, image_size: int, sigma: float, hidden_mult: int) -> Qwen2_5_VLConfig:
    """A published Qwen2.5-VL config made ready for `FusarForConditionalGeneration.from_pretrained`."""
    config.fusar = {"image_size": image_size, "sigma": sigma, "hidden_mult": hidden_mult}
    return config


def parameter_count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
