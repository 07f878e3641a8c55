"""MolmoAct, the action reasoning model: images and a prompt in, next-token logits out.

The public names are `MolmoActConfig` and `MolmoActForActionReasoning`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from molmoact_policy import checkpoint
from molmoact_policy.config import MolmoActConfig
from molmoact_policy.connector import VisionBackbone
from molmoact_policy.errors import CheckpointError
from molmoact_policy.language import Rows, build_language_model, official_layout
from molmoact_policy.vision import VisionTransformer

__all__ = ["MolmoActConfig", "MolmoActForActionReasoning"]


class MolmoActForActionReasoning(PreTrainedModel, GenerationMixin):
    """Vision backbone, language model and an untied head without rows for the additional (image) ids."""

    config_class = MolmoActConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules: ClassVar[list[str]] = ["Block", "Qwen2DecoderLayer", "Olmo2DecoderLayer"]

    def __init__(self, config: MolmoActConfig) -> None:
        config.check()
        super().__init__(config)
        llm = config.llm_config
        self.vision_backbone = VisionBackbone(config.vit_config, config.adapter_config)
        self.language_model = build_language_model(llm, config._attn_implementation)
        self.lm_head = nn.Linear(llm.hidden_size, llm.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        images: Tensor | None = None,
        pooled_patches_idx: Tensor | None = None,
        image_masks: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, S, vocab] of the ordinary ids; the additional ids cannot be predicted.

        input_ids [B, S] with -1 read as 0, or inputs_embeds [B, S, hidden] (see `merge_image_features`) instead;
        attention_mask [B, S]; images and pooled_patches_idx as `image_features` takes them. Positions are 0..S-1 even
        with left padding unless position_ids [B, S] are given, as in the release. `logits_to_keep`: only the last n
        positions, or those at the given indices (0: all).
        """
        if inputs_embeds is None:
            features = None if images is None else self.image_features(images, pooled_patches_idx, image_masks)
            inputs_embeds = self.merge_image_features(input_ids, features)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(
            logits=self.lm_head(outputs.last_hidden_state[:, kept]),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def image_features(self, images: Tensor, pooled_patches_idx: Tensor, image_masks: Tensor | None = None) -> Tensor:
        """[pooled tokens of the batch, hidden], before they meet the embeddings.

        images [B, crops, patches, patch_size² * 3]; pooled_patches_idx [B, tokens, 4], -1 for an empty slot;
        image_masks [B, crops, patches] count only with `config.use_pad_embed` (training; the released inference code
        never applies its padding embedding).
        """
        masks = image_masks if self.config.use_pad_embed else None
        return self.vision_backbone(images, pooled_patches_idx, masks)

    def merge_image_features(self, input_ids: Tensor, features: Tensor | None) -> Tensor:
        """inputs_embeds [B, S, hidden]: token embeddings, with `features` at the <im_patch> tokens in row-major order.

        Raises ValueError when the number of features is not the number of <im_patch> tokens.
        """
        embeddings = self.get_input_embeddings()(input_ids * (input_ids != -1))
        if features is None:
            return embeddings
        patches = input_ids == self.config.image_patch_id  # [B, S]
        if len(features) != int(patches.sum()):
            raise ValueError(f"{len(features)} image features for {int(patches.sum())} <im_patch> tokens in input_ids")
        features = features.to(embeddings.dtype)
        if self.config.image_injection == "add":
            features = embeddings[patches] + features
        return embeddings.masked_scatter(patches.unsqueeze(-1), features)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        images: Tensor | None = None,
        pooled_patches_idx: Tensor | None = None,
        image_masks: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As transformers', with the images in the first (prefill) step only: the cache holds them afterwards."""
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if is_first_iteration:
            inputs.update(images=images, pooled_patches_idx=pooled_patches_idx, image_masks=image_masks)
        return inputs

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        own = [getattr(module, "pad_embed", None)]
        if isinstance(module, VisionTransformer):
            own += [module.positional_embedding, module.class_embedding]
        for parameter in own:
            if parameter is not None:
                nn.init.normal_(parameter, std=self.config.initializer_range)

    def official_layout(self) -> dict[str, tuple[Rows, ...]]:
        """Key in the official checkpoints -> the rows of this module's parameters it is made of."""
        layout = {
            f"model.transformer.{key}": tuple(
                Rows(f"language_model.{rows.parameter}", rows.start, rows.stop) for rows in parts
            )
            for key, parts in official_layout(self.config.llm_config).items()
        }
        for name, _ in self.vision_backbone.named_parameters():
            layout[f"model.vision_backbone.{name}"] = (Rows(f"vision_backbone.{name}"),)
        layout["lm_head.weight"] = (Rows("lm_head.weight"),)
        return layout

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        config: MolmoActConfig | None = None,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str = "cpu",
        attn_implementation: str | None = None,
        variant: str | None = None,
    ) -> MolmoActForActionReasoning:
        """A checkpoint in the official layout: a directory, or the name of a hub repository already in the local cache.

        `dtype` "auto" keeps the checkpoint's. `attn_implementation` ("sdpa", the default, or "eager") is the language
        model's. `variant`: compute as one of config.VARIANTS; None: as config.json says, by default as the released HF
        code. Weights are read tensor by tensor straight to the device. Raises CheckpointError naming what is missing or
        does not fit, and ValueError for a dtype or variant that is none.
        """
        directory = checkpoint.locate(directory)
        config = config or checkpoint.read_config(directory)
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        if variant is not None:
            config.follow(variant)
        chosen = None if dtype == "auto" else checkpoint.float_dtype(dtype)
        model = cls.without_weights(directory, config)
        stored = checkpoint.StoredTensors(directory, model)
        model.to(chosen or stored.dtype).to_empty(device=device)
        model._rebuild_rotary_embedding(device)
        stored.copy_into(model)
        model.generation_config = checkpoint.read_generation_config(directory) or model.generation_config
        return model.eval()

    @classmethod
    def without_weights(cls, directory: Path, config: MolmoActConfig) -> MolmoActForActionReasoning:
        """The model of a checkpoint's configuration on the meta device. Raises CheckpointError when there is none."""
        try:
            with torch.device("meta"):
                return cls(config)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{directory / checkpoint.CONFIG}: {error}") from error

    def save_pretrained(self, directory: str | Path, *, max_shard_bytes: int = 5_000_000_000) -> None:
        """config.json, generation_config.json and safetensors under the official keys, sharded above the given size."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.config.architectures = [type(self).__name__]
        self.config.dtype = self.dtype
        self.config.save_pretrained(directory)
        self.generation_config.save_pretrained(directory)
        checkpoint.write_tensors(self, directory, max_shard_bytes)

    def _rebuild_rotary_embedding(self, device: torch.device | str) -> None:
        """Its tables are computed, not stored, and to_empty has just lost them."""
        rotary = type(self.language_model.rotary_emb)
        self.language_model.rotary_emb = rotary(self.language_model.config).to(device)
