"""HTML of the Samples page and what both lists share. Every text from data goes through `escape`.

Pure functions: records in, HTML out. Buttons and links carry `data-…` attributes; plumb.js does what they say.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from html import escape
from urllib.parse import urlencode

from storage.finding import SampleFilter

_drawings = itertools.count()


def drawn(html: str) -> str:
    """The HTML with a number of its own.

    Gradio renders nothing when a value is what it was; but plumb.js has changed the page since (a score that is
    pressed), so that after an undo the old HTML must be drawn again.
    """
    return f"{html}<!--{next(_drawings)}-->"


def data_counts(numbers: Mapping[str, int]) -> str:
    """An attribute from which plumb.js brings the header's numbers up to date."""
    return f'data-counts="{escape(json.dumps(numbers), quote=True)}"'


def link(where: SampleFilter, sample_id: int | None = None) -> str:
    """The query string of a view of the Samples page."""
    query = where.as_query() | ({"sample": str(sample_id)} if sample_id is not None else {})
    return "?" + urlencode(query)


def go(search: str, text: str, classes: str = "", label: str = "") -> str:
    """A link within the page: a real address, taken over by plumb.js so that the page is not loaded again."""
    named = f' aria-label="{escape(label, quote=True)}"' if label else ""
    return f'<a class="{classes}" href="{escape(search, quote=True)}" data-go{named}>{text}</a>'


def empty(title: str, text: str, href: str = "", action: str = "") -> str:
    """What stands where nothing is yet, and what to do next. `text` may hold HTML of ours."""
    button = f'<p><a class="pb-button primary" href="{escape(href, quote=True)}">{action}</a></p>' if href else ""
    return f'<div class="pb-empty"><h3>{title}</h3><p>{text}</p>{button}</div>'


def thumbnail(sha256: str, text: str = "") -> str:
    return f'<img class="pb-thumb" src="/thumbnails/{escape(sha256)}" alt="{escape(text)}" loading="lazy">'


def text_of(content: object) -> str:
    """A turn's content in one line; an image part stands as [image]."""
    if isinstance(content, str):
        return content
    assert isinstance(content, list)
    return " ".join(part["text"] if part["type"] == "text" else "[image]" for part in content)


# --- first steps ---


def progress(done: int, total: int, text: str) -> str:
    """A bar for what takes a while."""
    share = 100 * done / total if total else 0
    return (
        f'<div class="pb-progress" role="status"><progress max="{total}" value="{done}"></progress>'
        f"<span>{escape(text)} {done:,} of {total:,} ({share:.0f} %)</span></div>"
    )


def notice(text: str, kind: str = "info") -> str:
    """A message that stays on the page; kind is info, good or bad."""
    role = "alert" if kind == "bad" else "status"
    return f'<div class="pb-notice {kind}" role="{role}">{escape(text)}</div>' if text else ""


def next_step(candidates: int, judged: bool, pairs: int) -> str:
    """What to do next on the way from samples to pairs; nothing once it is walked."""
    if not candidates:
        text, href, action = "The samples have no answers yet.", "/jobs?kind=generate", "Generate candidates"
    elif not judged:
        text, href, action = "The answers are not scored yet.", "/jobs?kind=judge", "Judge the candidates"
    elif not pairs:
        text, href, action = "The answers are scored.", "/pairs", "Make pairs"
    else:
        return ""
    return (
        f'<div class="pb-next" role="status"><span>{text}</span>'
        f'<a class="pb-button primary small" href="{href}">Next: {action[0].lower()}{action[1:]}</a></div>'
    )
