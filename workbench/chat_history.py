"""What a column's model is sent of a conversation, and what is left out of it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from storage.chats import text_of, without_oldest_images
from storage.errors import UserError
from storage.images import get_images, image_path
from storage.records import Part, Turn
from workbench.context import Context


def history(
    context: Context,
    turns: Sequence[Turn],
    column: int,
    system: str = "",
    without_images: int = 0,
    read: dict[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The messages that a column's model sees: all questions, its own answers, images as base64.

    A question that got no answer here is put together with the next one, because chat templates want the
    roles to take turns.

    Args:
        without_images: how many of the oldest images are left out.
        read: images that were read for another column, by sha256; those read now are added.

    Raises:
        UserError: an image's file is missing.
    """
    turns = without_oldest_images(turns, without_images)
    read = {} if read is None else read
    with context.database() as db:
        wanted = [part["image"] for turn in turns for part in turn.content if part["type"] == "image"]
        images = get_images(db, wanted)
    messages: list[dict[str, Any]] = []
    if system.strip():
        messages.append({"role": "system", "content": [{"type": "text", "text": system.strip()}]})
    for turn in turns:
        if turn.role == "user":
            content = [_sent(context, part, images, read) for part in turn.content]
        elif turn.column_number == column and (text_of(turn.content) or turn.finish == "stop"):
            content = [{"type": "text", "text": text_of(turn.content)}]
        else:
            continue
        if messages and messages[-1]["role"] == turn.role:
            messages[-1]["content"] += content
        else:
            messages.append({"role": turn.role, "content": content})
    return messages


def left_out(turns: Sequence[Turn], number: int) -> str:
    """Which images are not sent, in words; "" where all are."""
    held = [
        question
        for question, turn in enumerate((turn for turn in turns if turn.role == "user"), start=1)
        for part in turn.content
        if part["type"] == "image"
    ]
    gone = held[:number]
    if not gone:
        return ""
    which = "image 1" if len(gone) == 1 else f"images 1 to {len(gone)}"
    asked = f"question {gone[0]}" if gone[0] == gone[-1] else f"questions {gone[0]} to {gone[-1]}"
    return f"Left out: {which} of {len(held)} (in {asked})."


def images_in(turns: Sequence[Turn]) -> int:
    return sum(part["type"] == "image" for turn in turns for part in turn.content)


def _sent(context: Context, part: Part, images: Mapping[str, Any], read: dict[str, str]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    sha256 = part["image"]
    if sha256 not in read:
        try:
            data = image_path(context.folder, images[sha256]).read_bytes()
        except OSError as error:
            raise UserError(f"The image {sha256[:12]} is missing; run `python -m storage check`.") from error
        read[sha256] = base64.b64encode(data).decode("ascii")
    return {"type": "image", "data": read[sha256]}
