"""SteerLM's attribute string: what an adapter of that method is asked with (paper.md, section 4). Torch-free.

Training shows each answer after its own five values; whoever speaks with the adapter asks for all five at 4.

How the string is joined to the question isn't in the paper. Our choice: a newline, the sentence, another newline,
the values; all of it at the end of the last user turn's text. Earlier turns of a conversation stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from storage.records import HIGHEST, METRICS, Message

METHOD = "steerlm"

SENTENCE = (
    "Please answer the question such that your response is in the following attributes in 5-point Likert scale:"
)

#: What is asked for at inference.
BEST: Mapping[str, int] = dict.fromkeys(METRICS, HIGHEST)


def attribute_string(values: Mapping[str, int] = BEST) -> str:
    """`Helpfulness:4,Correctness:4,Coherence:4,Complexity:4,Verbosity:4`; other keys are passed over."""
    return ",".join(f"{metric.capitalize()}:{values[metric]}" for metric in METRICS)


def with_attributes(messages: Sequence[Message], values: Mapping[str, int] = BEST) -> list[Message]:
    """The messages with the sentence and these values at the end of the last turn, which must be the user's.

    They join the turn's last part where that is text; after an image they are a part of their own.
    """
    asked = f"\n{SENTENCE}\n{attribute_string(values)}"
    *before, last = messages
    content = last["content"]
    if isinstance(content, str):
        return [*before, {**last, "content": content + asked}]
    parts = list(content)
    if parts and parts[-1]["type"] == "text":
        parts[-1] = {**parts[-1], "text": parts[-1]["text"] + asked}
    else:
        parts.append({"type": "text", "text": asked.lstrip("\n")})
    return [*before, {**last, "content": parts}]


def asked_of(method: str, messages: Sequence[Message]) -> list[Message]:
    """The messages as an adapter of this method is asked them."""
    return with_attributes(messages) if method == METHOD else list(messages)
