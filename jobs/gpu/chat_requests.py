"""What a chat is asked: messages with images as base64, and the columns that answer."""

from __future__ import annotations

import base64
import binascii
import io
import uuid
from typing import Annotated, Literal

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.gpu.prompts import Messages, with_images
from storage.errors import UserError
from storage.records import HIGHEST


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """An image as base64 of its file, so that the engine needs no path of the app's."""

    type: Literal["image"]
    data: str


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    role: Literal["system", "user", "assistant"]
    content: str | tuple[Part, ...]


class Column(_Strict):
    """One side of the chat. `messages` stand in for the request's: after the first turn, each side has its own.

    `prefix` is how the answer begins: what comes after it is drawn, and sent.
    """

    id: str = Field(min_length=1, max_length=40)
    adapter: int | None = None
    messages: tuple[Message, ...] | None = None
    prefix: str = Field("", max_length=200_000)


class Attributes(_Strict):
    """What a SteerLM adapter is asked for, 0 to 4 each (paper.md, section 4); other columns never see it."""

    helpfulness: int = Field(HIGHEST, ge=0, le=HIGHEST)
    correctness: int = Field(HIGHEST, ge=0, le=HIGHEST)
    coherence: int = Field(HIGHEST, ge=0, le=HIGHEST)
    complexity: int = Field(HIGHEST, ge=0, le=HIGHEST)
    verbosity: int = Field(HIGHEST, ge=0, le=HIGHEST)


class ChatRequest(_Strict):
    """One turn to be answered by every column. `user` is any word for whose it is: users take turns."""

    request: str = Field(default_factory=lambda: uuid.uuid4().hex, min_length=1, max_length=64)
    user: str = Field("", max_length=200)
    messages: tuple[Message, ...] = ()
    columns: tuple[Column, ...] = Field(min_length=1, max_length=8)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: int = Field(0, ge=0, le=2**31 - 1)
    max_new_tokens: int = Field(256, ge=1, le=4096)
    attributes: Attributes = Field(default_factory=Attributes)

    @model_validator(mode="after")
    def _whole(self) -> ChatRequest:
        if len({column.id for column in self.columns}) < len(self.columns):
            raise ValueError("two columns have the same id; give each its own")
        for column in self.columns:
            messages = self.of(column)
            if not messages or messages[-1].role != "user":
                raise ValueError(f"column {column.id!r}: the last message must be the user's")
        return self

    def of(self, column: Column) -> tuple[Message, ...]:
        return self.messages if column.messages is None else column.messages


def as_chat(messages: tuple[Message, ...]) -> Messages:
    """Messages as the processor takes them, images decoded.

    Raises:
        UserError: an image that is no base64, or no image.
    """
    plain: Messages = [
        {
            "role": message.role,
            "content": message.content
            if isinstance(message.content, str)
            else [
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {"type": "image", "image": part.data}
                for part in message.content
            ],
        }
        for message in messages
    ]
    return with_images(plain, decode_image)


def decode_image(data: str) -> Image.Image:
    try:
        raw = base64.b64decode(data, validate=True)
        with Image.open(io.BytesIO(raw)) as image:
            return image.convert("RGB")
    except binascii.Error as error:
        raise UserError(f"An image of the chat is not base64 ({error}); send its file encoded.") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise UserError(f"An image of the chat cannot be read ({error}); choose another.") from error
