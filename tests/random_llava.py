"""A LLaVA with random weights of a given size, for benchmarks that need no trained one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import tiny


@dataclass(frozen=True)
class Size:
    """Of the image in pixels, the vision tower (6 layers) and the language model."""

    side: int
    patch: int
    vision: int
    vision_heads: int
    layers: int
    width: int
    heads: int
    key_value_heads: int
    mlp: int
    tied: bool = False


#: SmolLM2-135M's shape with 64 image tokens.
DEMO = Size(64, 8, 192, 6, 30, 576, 9, 3, 1536, tied=True)
#: LLaVA-1.5's image with 576 tokens, before a language model of middling size.
LARGER = Size(336, 14, 256, 4, 12, 1024, 16, 16, 2816)


def random_llava(size: Size, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """(the model in `eval` mode, its processor); the same weights each time."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = tiny.make_tokenizer()
    image = tokenizer.convert_tokens_to_ids(tiny.IMAGE_TOKEN)
    vision = CLIPVisionConfig(
        hidden_size=size.vision,
        intermediate_size=4 * size.vision,
        num_hidden_layers=6,
        num_attention_heads=size.vision_heads,
        image_size=size.side,
        patch_size=size.patch,
    )
    text = LlamaConfig(
        vocab_size=49152,
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=size.tied,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=image,
        image_seq_length=(size.side // size.patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=size.tied,
    )
    torch.manual_seed(0)
    side = {"height": size.side, "width": size.side}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=side, crop_size=side),
        tokenizer=tokenizer,
        patch_size=size.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=tiny.IMAGE_TOKEN,
        chat_template=tiny.TEMPLATE,
    )
    return LlavaForConditionalGeneration(config).to(dtype).eval(), processor
