"""Tiny models of every architecture, with batches for them: random weights, made in code.

Batches are tensors made by hand in the processors' shapes, since Qwen2.5-VL's and SmolVLM's processors want
packages (torchvision, num2words) that Plumb doesn't need otherwise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

IMAGE, VIDEO, START, END_OF_IMAGE = 250, 251, 252, 253  # ids among the model's 260 words
WORDS, TEXT = 260, 240  # ids below TEXT are text
SIDE, PATCH, WIDTH = 16, 8, 32

#: Ids of each pair's prompt, and the images' tensors, once for each pair.
Prompts = tuple[list[list[int]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Family:
    """An architecture: a model, and prompts for pairs with so many images each."""

    make: Callable[[], Any]
    prompts: Callable[[Sequence[int], random.Random], Prompts]


def text_settings(**changes: Any) -> dict[str, Any]:
    """What the language models have in common."""
    return {
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "initializer_range": 0.3,
        **changes,
    }


def vision_settings(**changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        **changes,
    }


def words(count: int, chance: random.Random) -> list[int]:
    return [chance.randrange(2, TEXT) for _ in range(count)]


def prompt(images: Sequence[list[int]], chance: random.Random) -> list[int]:
    """Words, then each image's tokens with a word after it, then words: no two prompts of one length."""
    ids = words(chance.randrange(1, 4), chance)
    for tokens in images:
        ids += tokens + words(1, chance)
    return ids + words(chance.randrange(1, 6), chance)


def pixels(*shape: int, chance: random.Random) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(chance.randrange(2**31)))


def make_llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**vision_settings(projection_dim=16)),
            text_config=LlamaConfig(**text_settings()),
            image_token_index=IMAGE,
            image_token_id=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
        )
    )


def llava_prompts(counts: Sequence[int], chance: random.Random) -> Prompts:
    tokens = (SIDE // PATCH) ** 2
    prompts = [prompt([[IMAGE] * tokens] * count, chance) for count in counts]
    images = {"pixel_values": pixels(sum(counts), 3, SIDE, SIDE, chance=chance)} if sum(counts) else {}
    return prompts, images


def make_llava_next() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(**vision_settings(projection_dim=16)),
            text_config=LlamaConfig(**text_settings()),
            image_token_index=IMAGE,
            image_token_id=IMAGE,
            image_grid_pinpoints=[[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]],
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
        )
    )


def llava_next_prompts(counts: Sequence[int], chance: random.Random) -> Prompts:
    """Wide, tall and square pictures: two or four tiles, and the whole picture small."""
    # Each: height, width, tiles with the whole among them, tokens with the line ends.
    kinds = [(16, 32, 3, 4 + 2 * (4 + 1)), (32, 16, 3, 4 + 4 * (2 + 1)), (32, 32, 5, 4 + 4 * (4 + 1))]
    prompts, sizes, tiles = [], [], []
    for count in counts:
        chosen = [kinds[chance.randrange(len(kinds))] for _ in range(count)]
        prompts.append(prompt([[IMAGE] * kind[3] for kind in chosen], chance))
        for height, width, parts, _ in chosen:
            sizes.append([height, width])
            whole = torch.zeros(5, 3, SIDE, SIDE)  # the processor pads to the most tiles with zeros
            whole[:parts] = pixels(parts, 3, SIDE, SIDE, chance=chance)
            tiles.append(whole)
    images = {"pixel_values": torch.stack(tiles), "image_sizes": torch.tensor(sizes)} if tiles else {}
    return prompts, images


def make_qwen() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_config={
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_heads": 2,
                "patch_size": 4,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "out_hidden_size": WIDTH,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
            text_config=text_settings(
                rope_parameters={"rope_type": "default", "rope_theta": 100.0, "mrope_section": [1, 1, 2]}
            ),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END_OF_IMAGE,
        )
    )


def qwen_prompts(counts: Sequence[int], chance: random.Random) -> Prompts:
    """Pictures of several sizes, with a token for every 2 × 2 patches."""
    prompts, grids = [], []
    for count in counts:
        grid = [[1, 2 * chance.randrange(1, 4), 2 * chance.randrange(1, 5)] for _ in range(count)]
        grids += grid
        prompts.append(prompt([[START, *[IMAGE] * (h * w // 4), END_OF_IMAGE] for _, h, w in grid], chance))
    if not grids:
        return prompts, {}
    patches = sum(h * w for _, h, w in grids)
    return prompts, {
        "pixel_values": pixels(patches, 3 * 2 * 4 * 4, chance=chance),
        "image_grid_thw": torch.tensor(grids),
    }


def make_smolvlm() -> Any:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            vision_config=vision_settings(image_size=2 * SIDE),
            text_config={"model_type": "llama", **text_settings()},
            image_token_id=IMAGE,
            scale_factor=2,
            pad_token_id=0,
        )
    )


def smolvlm_prompts(counts: Sequence[int], chance: random.Random) -> Prompts:
    """Images stand a row each, filled up with black ones; some have a margin that the mask leaves out."""
    prompts = [prompt([[IMAGE] * 4] * count, chance) for count in counts]
    most = max(counts)
    if not most:
        return prompts, {}
    shown = torch.zeros(len(counts), most, 3, 2 * SIDE, 2 * SIDE)
    inside = torch.zeros(len(counts), most, 2 * SIDE, 2 * SIDE, dtype=torch.long)
    for row, count in enumerate(counts):
        for place in range(count):
            height = 2 * SIDE - PATCH * chance.randrange(0, 2)
            shown[row, place, :, :height] = pixels(3, height, 2 * SIDE, chance=chance)
            inside[row, place, :height] = 1
    return prompts, {"pixel_values": shown, "pixel_attention_mask": inside}


def make_gemma3() -> Any:
    """Its image tokens see both ways."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            vision_config=vision_settings(),
            text_config=text_settings(head_dim=8),
            mm_tokens_per_image=4,
            image_token_id=IMAGE,
            boi_token_index=START,
            eoi_token_index=END_OF_IMAGE,
        )
    )


FAMILIES = {
    "llava": Family(make_llava, llava_prompts),
    "llava_next": Family(make_llava_next, llava_next_prompts),
    "qwen2_5_vl": Family(make_qwen, qwen_prompts),
    "smolvlm": Family(make_smolvlm, smolvlm_prompts),
}


def make(name: str, seed: int = 0) -> Any:
    """A model of this architecture with LoRA on its language model, all weights random, and TRL's fused head."""
    from peft import LoraConfig, get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    from jobs.gpu.lora import language_linears

    torch.manual_seed(seed)
    model = FAMILIES[name].make()
    with torch.no_grad():
        for parameter in model.parameters():
            # Towers start near zero: large enough that another picture gives another answer.
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
    settings = LoraConfig(r=4, target_modules=language_linears(model), init_lora_weights=False)
    wrapped = get_peft_model(model, settings)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return wrapped.train()


def stacked(
    name: str, counts: Sequence[int], sizes: Sequence[tuple[int, int]], seed: int = 0, common: int = 0
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A batch as TRL's collator stacks it, and its images once a pair.

    Args:
        counts: images of each pair.
        sizes: tokens of each pair's chosen and rejected answer.
        common: tokens that both answers of a pair begin with.
    """
    chance = random.Random(seed)
    prompts, images = FAMILIES[name].prompts(counts, chance)
    starts = [words(common, chance) for _ in counts]
    answers = [
        start + words(pair[side] - common, chance)
        for side in (0, 1)
        for start, pair in zip(starts, sizes, strict=True)
    ]
    rows = [asked + answer for asked, answer in zip(prompts * 2, answers, strict=True)]
    shape = (len(rows), max(map(len, rows)))
    ids, mask, labels = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.full(shape, -100)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
        start = len(prompts[place % len(prompts)])
        labels[place, start : len(row)] = ids[place, start : len(row)]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if name == "qwen2_5_vl":
        batch["mm_token_type_ids"] = (ids == IMAGE).long()
    return batch, images
