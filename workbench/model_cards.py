"""Model cards as HTML. What is in a card came from settings and data: none of its HTML gets through."""

from __future__ import annotations

import base64
from functools import cache
from html import escape

from markdown_it import MarkdownIt


@cache
def _reader() -> MarkdownIt:
    # html off: tags are shown as text. Images are off, too: a picture's address would be asked for by the browser.
    return MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def card_html(card: str) -> str:
    """A card without its front matter, which is for machines."""
    return f'<div class="pm-card">{_reader().render(body_of(card))}</div>' if card.strip() else ""


def body_of(card: str) -> str:
    start, mark, body = card.removeprefix("---\n").partition("\n---\n")
    return body if card.startswith("---\n") and mark and len(start) < 10_000 else card


def download(text: str, name: str, kind: str, title: str) -> str:
    """A link whose file is in the link itself: what is seen is what is saved."""
    data = base64.b64encode(text.encode("utf-8", errors="replace")).decode()
    return (
        f'<a class="pb-button small" download="{escape(name, quote=True)}" '
        f'href="data:{kind};charset=utf-8;base64,{data}">{escape(title)}</a>'
    )
