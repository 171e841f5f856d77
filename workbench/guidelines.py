"""The guidelines beside the sample: Markdown from people; nothing of theirs is run or fetched."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML

from storage import guidelines as store
from storage.guidelines import Guidelines
from workbench.context import Context

EDITORS = ("researcher", "admin")


def may_edit(role: str) -> bool:
    """Whether a person of this role may write the guidelines."""
    return role in EDITORS


def safe_link(address: str) -> bool:
    """Whether a link may lead there: pages of ours, the web, mail; nothing that runs, nothing that embeds.

    What cannot be read as an address is none. `//host` is an address without its scheme, and not a page of ours.
    """
    try:
        parts = urlsplit(address.strip())
    except ValueError:
        return False
    if any(ord(character) < 33 for character in address):
        return False
    if parts.scheme:
        return parts.scheme.lower() in ("http", "https", "mailto")
    return not parts.netloc and "\\" not in address


class _Renderer(RendererHTML):
    def link_open(self, tokens: Sequence[Any], idx: int, options: Any, env: Any) -> str:
        token = tokens[idx]
        if urlsplit(str(token.attrGet("href") or "")).scheme:
            token.attrSet("target", "_blank")
            token.attrSet("rel", "noopener noreferrer")
        return self.renderToken(tokens, idx, options, env)


@cache
def _reader() -> MarkdownIt:
    # html off: tags are shown as text. No images: their address would be asked for by every annotator's browser.
    reader = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer)
    reader.enable("table").disable("image")
    reader.validateLink = safe_link  # type: ignore[method-assign, assignment]
    return reader


def render(text: str) -> str:
    """Markdown as HTML; HTML in it is shown as text, and a link that may not be one stays text."""
    return str(_reader().render(text))


def panel(newest: Guidelines, versions: Sequence[Guidelines], editable: bool) -> str:
    """The fold-out: the text, who wrote it when, the editor, and the versions before."""
    if newest.text:
        body = f'<div class="pf-guide-text" tabindex="0" aria-label="Guidelines">{render(newest.text)}</div>'
    else:
        who = "Press Edit to write down" if editable else "A researcher can write down"
        body = f'<p class="pb-sub">There are no guidelines yet. {who} what the scores mean in this project.</p>'
    signed = f"Version {newest.number} · {escape(newest.user)} · {_day(newest.at)}" if newest.number else ""
    edit = '<button type="button" class="pb-button small" data-guide="edit">Edit</button>' if editable else ""
    return (
        f'<section class="pf-guide" data-version="{newest.number}" '
        f'data-markdown="{escape(newest.text, quote=True)}">{body}'
        f'<div class="pf-guide-foot"><span class="pb-sub">{signed}</span><span class="pb-spacer"></span>{edit}'
        f"</div>{_versions(versions)}</section>"
    )


def _versions(versions: Sequence[Guidelines]) -> str:
    if len(versions) < 2:
        return ""
    items = "".join(
        f'<details class="pf-version"><summary>Version {one.number} · {escape(one.user)} · {_day(one.at)}'
        f"</summary><div>{render(one.text) or '(empty)'}</div></details>"
        for one in versions[1:]
    )
    return f'<details class="pf-versions"><summary>{len(versions) - 1} before this one</summary>{items}</details>'


def _day(moment: str) -> str:
    return escape(moment[:16].replace("T", " "))


# --- handlers ---


def show_guidelines(context: Context, role: str = "admin") -> str:
    """The fold-out's HTML for a person of this role."""
    with context.database() as db:
        return panel(store.get_guidelines(db), store.list_guidelines(db), may_edit(role))


def save_guidelines(context: Context, user: str, text: str, was: int, role: str = "admin") -> str:
    """Store a new version; returns the fold-out's HTML.

    Raises:
        UserError: the person may not, or the text is too long.
        Conflict: somebody has written another version since.
    """
    from storage.errors import UserError

    if not may_edit(role):
        raise UserError("Guidelines are written by researchers and admins; ask one of them.")
    with context.database() as db:
        store.write_guidelines(db, user, text, was)
    return show_guidelines(context, role)
