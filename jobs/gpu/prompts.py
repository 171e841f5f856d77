"""Messages with image names → what a processor and a model take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from jobs.runs import RunFolder
from storage.errors import PlumbError, UserError

Messages = list[dict[str, Any]]


def open_image(path: Path) -> Image.Image:
    """An image file as RGB, whole in memory.

    Raises:
        UserError: it is missing, empty, cut off, not an image or too large to be meant.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"The image {path.name} is missing from the run folder; submit the job again.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise UserError(f"The image {path.name} cannot be read ({error}); import it again.") from error


def image_names(messages: Messages) -> list[str]:
    """The names of the images, in the order in which the messages show them."""
    return [
        part["image"]
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image"
    ]


def with_images(messages: Messages, opener: Callable[[str], Image.Image]) -> Messages:
    """The same messages with every content a list of parts, and every image opened."""
    opened: Messages = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        opened.append(
            {
                "role": message["role"],
                "content": [
                    {"type": "image", "image": opener(part["image"])}
                    if part["type"] == "image"
                    else {"type": "text", "text": part["text"]}
                    for part in parts
                ],
            }
        )
    return opened


def from_run(run: RunFolder, messages: Messages) -> Messages:
    """Messages of a run folder's row, with their images opened."""
    return with_images(messages, lambda name: open_image(run.image(name)))


def check_messages(messages: Any, where: str) -> None:
    """Refuse what no chat template can take.

    Raises:
        UserError: no messages, an unknown part, or a last message that isn't the user's.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where} has no messages.")
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, (str, list)) or "role" not in message:
            raise UserError(f"{where}: each message needs a role and a content, not {message!r:.80}.")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "image") or kind not in part:
                raise UserError(f"{where}: a part of type {kind!r} is neither text nor image, or holds none.")
    if messages[-1]["role"] != "user":
        raise UserError(f"{where}: the last message is of {messages[-1]['role']!r}; it must be the user's.")


def tokens_of(text: str, tokenizer: Any) -> list[int]:
    """The tokens of an answer's text, without any that a tokenizer would put around it.

    What reads like `<image>` or an end token there was said letter by letter, and is taken so again.
    """
    if not text:
        return []
    found: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return found


def begun_with(inputs: Mapping[str, Any], tokens: Sequence[int]) -> dict[str, Any]:
    """The inputs of one prompt, with its answer begun: the tokens follow it.

    What has a value for each token of the prompt (mask, token types) gets that of text for each new one.
    """
    shape = inputs["input_ids"].shape
    grown: dict[str, Any] = {}
    for name, value in inputs.items():
        if not torch.is_tensor(value) or value.shape != shape:
            grown[name] = value
            continue
        more = list(tokens) if name == "input_ids" else [int(name == "attention_mask")] * len(tokens)
        grown[name] = torch.cat([value, value.new_tensor([more])], dim=1)
    return grown


def encode(processor: Any, conversations: Sequence[Messages]) -> dict[str, Any]:
    """Conversations as one left-padded batch, each ending where the answer begins.

    Rows without images may stand beside rows with several. What users write is encoded as plain text: a
    question that contains `<image>` or an end token neither adds an image nor ends a turn.

    Returns:
        the processor's tensors: input_ids and attention_mask of shape (rows, tokens), pixel_values …

    Raises:
        PlumbError: the processor has no chat template.
    """
    if not (getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)):
        raise PlumbError("The model's processor has no chat template; choose a model that was tuned to chat.")

    def encoded(chats: Sequence[Messages], **sanitize: bool) -> dict[str, Any]:
        # A new dict each time: transformers writes into it what it was asked for.
        padding = {"padding": True, "padding_side": "left"}
        return dict(
            processor.apply_chat_template(
                list(chats),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=padding,
                **sanitize,
            )
        )

    try:
        return encoded(conversations, sanitize_control_tokens=True)
    except NotImplementedError:
        # The tokenizer adds its first token itself (LLaVA-1.5): transformers' way can't, so break the words up.
        words = control_words(processor)
        return encoded([disarmed(chat, words) for chat in conversations])


def control_words(processor: Any) -> tuple[str, ...]:
    """Texts that the tokenizer would read as a token of its own, `<image>` among them."""
    tokenizer = processor.tokenizer
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    words = {*added, *tokenizer.all_special_tokens, getattr(processor, "image_token", None)}
    return tuple(sorted(word for word in words if word and len(word) > 1))


def disarmed(messages: Messages, words: Sequence[str]) -> Messages:
    """The messages with a space after the first letter of each control word that a user wrote."""

    def disarm(text: str) -> str:
        for word in words:
            text = text.replace(word, f"{word[0]} {word[1:]}")
        return text

    return [
        {
            "role": message["role"],
            "content": [
                {**part, "text": disarm(part["text"])} if part["type"] == "text" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def to_device(inputs: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Tensors to the device, floating ones (pixels) to the model's dtype too."""
    moved: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            value = value.to(device, dtype) if value.is_floating_point() else value.to(device)
        moved[name] = value
    return moved


def lengths(inputs: Mapping[str, Any]) -> list[int]:
    """Tokens of each row, padding left out."""
    return [int(count) for count in inputs["attention_mask"].sum(dim=1).tolist()]


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
