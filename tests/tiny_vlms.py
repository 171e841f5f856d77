"""Tiny VLMs of every family with their real processors: folders as a hub's, read by the Auto classes.

Each has a byte-level tokenizer with its family's control tokens, the processor class of its family and a chat
template in that family's manner. The models are those of tiny_models.py with ids that fit the tokenizers.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tiny_models import PATCH, SIDE, WIDTH, text_settings, vision_settings

PICTURES = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}

# Images first, then the words, as Hugging Face's template for LLaVA-1.5 has it.
_PARTS = (
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
)
VICUNA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    + _PARTS
    + "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    + _PARTS
    + "{{ content['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% else %}{{ ' ' }}" + _PARTS + "{{ content['text'] }}{% endfor %}{{ '</s> ' }}{% endif %}"
    "{% endfor %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' }}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ content['text'] | trim }}{% endif %}"
    "{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def make_tokenizer(end: str, specials: Sequence[str], named: dict[str, str] | None = None, begin: str = "") -> Any:
    """A byte-level tokenizer: 256 bytes and control tokens.

    Args:
        end: the end token.
        specials: more control tokens.
        named: control tokens that the tokenizer has an attribute for, as processors ask for them.
        begin: a token that the tokenizer puts first by itself, as Llama's and Gemma's do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    if begin:
        raw.add_special_tokens([begin])
        number = raw.token_to_id(begin)
        raw.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, number)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token=end,
        bos_token=begin or None,
        padding_side="left",
        extra_special_tokens=list(specials),
        model_specific_special_tokens=named or {},
    )


def ids(tokenizer: Any, **words: str) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(word) for name, word in words.items()}


def language(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """A language model's settings for this tokenizer."""
    return text_settings(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=1024,
        **changes,
    )


Made = tuple[Any, Any]


def make_llava() -> Made:
    """As llava-hf/llava-1.5-7b-hf: scales the shorter side, crops the centre, Vicuna's template."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = make_tokenizer("</s>", ["<image>"], begin="<s>")
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, **PICTURES
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision_settings(projection_dim=16)),
        text_config=LlamaConfig(**language(tokenizer)),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        **ids(tokenizer, image_token_index="<image>", image_token_id="<image>"),
    )
    return LlavaForConditionalGeneration(config), processor


def make_llava_next() -> Made:
    """As llava-hf/llava-v1.6-mistral-7b-hf: tiles, and the whole picture small."""
    from transformers import (
        CLIPVisionConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
        MistralConfig,
    )

    tokenizer = make_tokenizer("</s>", ["<image>"], begin="<s>")
    pinpoints = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=pinpoints,
        **PICTURES,
    )
    processor = LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=MISTRAL_TEMPLATE,
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision_settings(projection_dim=16)),
        text_config=MistralConfig(**language(tokenizer, sliding_window=None)),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        **ids(tokenizer, image_token_index="<image>", image_token_id="<image>"),
    )
    return LlavaNextForConditionalGeneration(config), processor


def make_qwen() -> Made:
    """As Qwen/Qwen2.5-VL-3B-Instruct: pictures of any size as patches, positions in time, height and width."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessorPil,
    )

    from jobs.gpu.processors import NoVideos, still

    words = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    tokenizer = make_tokenizer("<|im_end|>", ["<|im_start|>", *words.values()])
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH // 2,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": PATCH**2, "longest_edge": 12 * PATCH**2},
        **PICTURES,
    )
    processor = still(Qwen2_5_VLProcessor)(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=NoVideos({"video_processor_type": "Qwen2VLVideoProcessor"}),
        chat_template=QWEN_TEMPLATE,
    )
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": PATCH // 2,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": WIDTH,
            "window_size": 2 * PATCH,
            "fullatt_block_indexes": [1],
        },
        text_config=language(
            tokenizer,
            rope_parameters={"rope_type": "default", "rope_theta": 100.0, "mrope_section": [1, 1, 2]},
        ),
        **ids(tokenizer, **words),
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def make_smolvlm() -> Made:
    """As HuggingFaceTB/SmolVLM2: tiles with their places in words, and the whole picture last."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessorPil,
        SmolVLMProcessor,
    )

    from jobs.gpu.processors import NoVideos, still

    named = {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "end_of_utterance_token": "<end_of_utterance>",
        "global_image_token": "<global-img>",
    }
    places = [f"<row_{row}_col_{column}>" for row in (1, 2, 3, 4) for column in (1, 2, 3, 4)]
    tokenizer = make_tokenizer("<end_of_utterance>", ["<|im_start|>", *places], named)
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 4 * SIDE}, max_image_size={"longest_edge": 2 * SIDE}, **PICTURES
    )
    processor = still(SmolVLMProcessor)(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=NoVideos({"video_processor_type": "SmolVLMVideoProcessor"}),
        image_seq_len=4,
        chat_template=SMOLVLM_TEMPLATE,
    )
    config = SmolVLMConfig(
        vision_config=vision_settings(image_size=2 * SIDE),
        text_config={"model_type": "llama", **language(tokenizer)},
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        **ids(tokenizer, image_token_id="<image>"),
    )
    return SmolVLMForConditionalGeneration(config), processor


def make_gemma3() -> Made:
    """As google/gemma-3-4b-it: image tokens see both ways, the template writes the first token."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessorPil,
        Gemma3Processor,
    )

    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    tokenizer = make_tokenizer("<end_of_turn>", ["<start_of_turn>"], named, begin="<bos>")
    images = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}, **PICTURES)
    tokens = (SIDE // PATCH) ** 2
    processor = Gemma3Processor(
        image_processor=images, tokenizer=tokenizer, image_seq_length=tokens, chat_template=GEMMA_TEMPLATE
    )
    config = Gemma3Config(
        vision_config=vision_settings(),
        text_config=language(tokenizer, head_dim=8, sliding_window=512),
        mm_tokens_per_image=tokens,
        **ids(
            tokenizer,
            image_token_id="<image_soft_token>",
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
        ),
    )
    return Gemma3ForConditionalGeneration(config), processor


@dataclass(frozen=True)
class Family:
    """How to make it, and whether its pairs run as one sequence."""

    make: Callable[[], Made]
    shared: bool = True


FAMILIES = {
    "llava": Family(make_llava),
    "llava_next": Family(make_llava_next),
    "qwen2_5_vl": Family(make_qwen),
    "smolvlm": Family(make_smolvlm),
    "gemma3": Family(make_gemma3, shared=False),
}


@functools.cache
def folder(name: str) -> Path:
    """A folder with this family's tiny model and processor, made once a process; treat it as read-only."""
    torch.set_num_threads(1)
    parent = Path(tempfile.mkdtemp(prefix="plumb-tiny-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    place = parent / f"tiny-{name}"
    torch.manual_seed(0)
    model, processor = FAMILIES[name].make()
    tokenizer = processor.tokenizer
    with torch.no_grad():
        for parameter in model.parameters():
            # Towers start near zero: large enough that another picture gives another answer.
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.tie_weights()
    model.eval().save_pretrained(place)
    processor.save_pretrained(place)
    return place
