"""How many tokens a prompt will be: an estimate for limits and money, corrected by the provider's own count."""

from __future__ import annotations

import io

from jobs.judges.calls import Picture, Prompt
from jobs.judges.pictures import picture_tokens

CHARACTERS_A_TOKEN = 3.5  # English takes about 4, other scripts and JSON fewer


def text_tokens(text: str) -> int:
    return round(len(text) / CHARACTERS_A_TOKEN) + 1


def prompt_tokens(prompt: Prompt) -> int:
    """Tokens of system text, parts, pictures and schema."""
    total = text_tokens(prompt.system)
    for part in prompt.parts:
        total += _picture(part) if isinstance(part, Picture) else text_tokens(part)
    return total + (text_tokens(str(prompt.schema)) if prompt.schema else 0)


def most_text_tokens(prompt: Prompt) -> int:
    """More tokens than its text can be: one a byte, which digits and many scripts come near."""
    texts = [prompt.system, *(part for part in prompt.parts if isinstance(part, str))]
    texts.append(str(prompt.schema) if prompt.schema else "")
    return sum(len(text.encode("utf-8", errors="replace")) for text in texts)


def estimated_text_tokens(prompt: Prompt) -> int:
    """The text's share of `prompt_tokens`."""
    texts = sum(text_tokens(part) for part in prompt.parts if isinstance(part, str))
    return text_tokens(prompt.system) + texts + (text_tokens(str(prompt.schema)) if prompt.schema else 0)


def _picture(picture: Picture) -> int:
    import PIL.Image

    with PIL.Image.open(io.BytesIO(picture.data)) as image:  # reads the header alone
        return picture_tokens(*image.size)
