"""What stands around an answer: read from the chat template, so that training sees what generation makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_MARK = "\u241e"  # the symbol for a record separator: stands for the answer while a template is read


@dataclass(frozen=True)
class Frame:
    """What the chat template puts around an answer, as ids: before it (after the prompt) and after it."""

    before: str
    after: list[int]


def answer_frame(processor: Any, messages: Any, ends: frozenset[int]) -> Frame:
    """Read from the template what stands around an answer.

    The prompt is what generation sees. Where the template writes a past answer differently (a space after
    "ASSISTANT:"), that lead belongs to the answer. After the answer everything up to the first end token
    counts; a template that writes none gets one, or the model would never learn where to stop.
    """
    plain = [{**message, "content": without_images(message["content"])} for message in messages]
    answer = {"role": "assistant", "content": [{"type": "text", "text": _MARK}]}
    prompt = processor.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    whole = processor.apply_chat_template([*plain, answer], tokenize=False)
    head, _, tail = whole.rpartition(_MARK)
    before = head[len(prompt) :] if head.startswith(prompt) else ""
    after = processor.tokenizer(tail, add_special_tokens=False)["input_ids"]
    for place, token in enumerate(after):
        if token in ends:
            return Frame(before, after[: place + 1])
    eos = processor.tokenizer.eos_token_id
    return Frame(before, [eos if eos is not None else min(ends)])


def without_images(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part for part in content if part["type"] == "text"] or [{"type": "text", "text": ""}]


def answer_ids(processor: Any, text: str, frame: Frame) -> list[int]:
    """An answer as tokens, plain text whatever it contains, with what the template puts around it."""
    ids: list[int] = processor.tokenizer(
        frame.before + text.strip(), add_special_tokens=False, split_special_tokens=True
    )["input_ids"]
    return ids + frame.after
