"""Conversations as what the Chat page shows. Pure: records in, text out.

Nothing that a model or a person writes becomes HTML: outside of code every `<` and `&` is escaped, so that
`<script>` is read and never run. What is code is only a guess here, since the browser's parser has the last
word: in code, where escapes would be read as they are, an invisible character breaks whatever could begin a tag
or a picture. Copied code carries that character.

Pictures that an answer links to are not fetched, since that alone would tell a foreign host what was asked;
diagrams (`mermaid`) stay code for the same reason: they can name pictures, too. Formulas are set by KaTeX, which
Gradio runs without trust: `\\href` and `\\includegraphics` do nothing. Gradio's sanitiser stands behind this as a
second wall.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from storage.chats import text_of
from storage.records import Conversation, Part, Turn
from storage.speakers import sides
from workbench.chat_client import Waiting

ChatMessage = dict[str, Any]

COLUMNS = ("left", "right")
FORMULAS: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]

_ACTS = {
    "stop": "stop this answer alone",
    "retry": "ask this column again, with another seed",
    "continue": "go on where the answer was cut",
}
_FENCE = re.compile(r"^ {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_CODE = re.compile(r"(?<![`\\])(`+)(?!`)((?:(?!\n[ \t]*\n).)+?)(?<!`)\1(?!`)", re.DOTALL)
_OPENS = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)")
_BREAK = "\u2060"  # word joiner: no width, and no place to break a line
# What Gradio's Markdown itself would read otherwise than as text: diagrams, and its own marks for formulas.
_STRANGE = re.compile(r"```mermaid|%%%LATEX_BLOCK_")


def safe_markdown(text: str) -> str:
    """Markdown in which HTML is shown and images are plain links; code looks as it is."""
    text = _STRANGE.sub(lambda found: found[0] + _BREAK, text)
    out: list[str] = []
    prose: list[str] = []
    fence = ""
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if fence:
            out.append(_broken(line))
            if found and found[1][0] == fence[0] and len(found[1]) >= len(fence) and not line.strip(" `~"):
                fence = ""
        elif found:
            if prose:
                out.append(_safe_prose("\n".join(prose)))
            prose, fence = [], found[1]
            out.append(_broken(line))
        else:
            prose.append(line)
    if prose:
        out.append(_safe_prose("\n".join(prose)))
    return "\n".join(out)


def _safe_prose(text: str) -> str:
    parts: list[str] = []
    place = 0
    for found in _CODE.finditer(text):
        parts += [_escaped(text[place : found.start()]), _broken(found[0])]
        place = found.end()
    return "".join([*parts, _escaped(text[place:])])


def _broken(text: str) -> str:
    return _OPENS.sub(lambda found: found[0] + _BREAK, text)


def _escaped(text: str) -> str:
    # No backslash before the bracket: it would begin a formula.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("![", "!&#91;")


def question(parts: Sequence[Part], turn: int | None = None, number: int = 0) -> ChatMessage:
    """A user's turn: its pictures, then its words.

    Args:
        turn: its id, for the pencil that begins to edit it; none where nobody may.
        number: which question of the conversation it is, from 1.
    """
    images = "".join(
        f'<a href="/images/{part["image"]}" target="_blank"><img class="plumb-chat-image" '
        f'src="/thumbnails/{part["image"]}" alt="image"></a>'
        for part in parts
        if part["type"] == "image" and part["image"].isalnum()
    )
    words = safe_markdown("\n".join(part["text"] for part in parts if part["type"] == "text"))
    pencil = (
        f'<a class="plumb-edit" href="#edit-{turn}" aria-label="Edit question {number}" '
        f'title="Edit question {number}">✎</a>'
        if turn is not None
        else ""
    )
    return {"role": "user", "content": "\n\n".join(piece for piece in (pencil + images, words) if piece)}


def answer(text: str, finish: str | None, live: bool = False) -> ChatMessage:
    """A model's turn; how it ended is told where it isn't the ordinary end."""
    notes = {
        "length": "cut off at the longest answer",
        "stopped": "stopped",
        "failed": "broken off",
        "lost": "broken off; asked again",
    }
    shown = safe_markdown(text)
    if live and finish is None:
        shown += " …" if text else "…"
    elif not text and finish == "stop":
        shown = '<span class="plumb-ending">(an empty answer)</span>'
    if finish in notes:
        shown += f'\n\n<span class="plumb-ending">({notes[finish]})</span>'
    return {"role": "assistant", "content": shown}


def shown_columns(turns: Sequence[Turn], number: int = 2) -> tuple[list[ChatMessage], ...]:
    """What each of so many columns shows: every question, and its own answers."""
    columns: tuple[list[ChatMessage], ...] = tuple([] for _ in range(number))
    asked = 0
    for turn in turns:
        asked += turn.role == "user"
        for place, column in enumerate(columns):
            if turn.role == "user":
                column.append(question(turn.content, turn.id, asked))
            elif turn.column_number == place:
                column.append(answer(text_of(turn.content), turn.finish))
    return columns


def column_acts(live: Sequence[bool], cut: Sequence[bool], answered: Sequence[bool]) -> str:
    """The buttons under each column. All are always there: one that vanished would take the focus with it."""
    groups = []
    for column, side in enumerate(sides(len(live))):
        shown = {"stop": live[column], "retry": answered[column], "continue": cut[column]}
        buttons = "".join(
            f'<button type="button" data-act="{act}" data-column="{column}" '
            f'aria-label="{act.capitalize()} the {side} column" title="{_ACTS[act]}"'
            f"{'' if wanted else ' hidden'}>{act.capitalize()}</button>"
            for act, wanted in shown.items()
        )
        groups.append(f'<div role="group" aria-label="The {side} column">{buttons}</div>')
    return f'<div class="plumb-acts">{"".join(groups)}</div>'


def editing(number: int) -> str:
    """The bar above the box while a question is edited."""
    return (
        f'<div class="plumb-bar-note" role="status"><span>Editing question {number}: sending replaces it and what '
        'follows.</span><button type="button" data-act="cancel" title="Escape">Cancel</button>'
        '<button type="button" data-act="delete">Delete from here on</button></div>'
    )


def too_long(images: int) -> str:
    """What can be done where a conversation exceeds the model's context."""
    leave = (
        '<button type="button" data-act="leave">Leave out the oldest image and try again</button>'
        if images
        else ""
    )
    return (
        '<div class="plumb-bar-note" role="alert"><span>This conversation is longer than the context of the model.'
        "</span>"
        f'{leave}<button type="button" data-act="new">New conversation</button></div>'
    )


def conversation_list(
    conversations: Sequence[Conversation], selected: int | None, adapter: int | None = None, search: str = ""
) -> str:
    """One's conversations as links, marked with the address of what is open: a conversation, else an adapter."""
    address = f"?conversation={selected}" if selected else f"?adapter={adapter}" if adapter else ""
    mark = f'<span data-url="{address}"></span>'
    if not conversations:
        told = f"No conversation of yours has “{escape(search)}” in it." if search else ""
        return f'{mark}<p class="plumb-note">{told or "Your conversations will be listed here."}</p>'
    entries = "".join(
        f'<a class="plumb-talk{" plumb-selected" if item.id == selected else ""}" '
        f'href="/chat?conversation={item.id}" data-conversation="{item.id}" '
        f'title="{escape(item.created_at[:16].replace("T", " "))} UTC">'
        f"{escape(item.title) or '(empty)'}</a>"
        for item in conversations
    )
    opened = (
        f'<a href="/api/conversations.jsonl?conversation={selected}" download>this one</a>, ' if selected else ""
    )
    link = (
        f' · <a href="/chat?conversation={selected}" data-copy role="button">Copy the link</a>' if selected else ""
    )
    export = f'<p class="plumb-note">Export {opened}<a href="/api/conversations.jsonl" download>all</a>{link}</p>'
    return f'{mark}<nav class="plumb-talks" aria-label="Your conversations">{entries}</nav>{export}'


def waiting(state: Waiting) -> str:
    """Why there is no answer yet, with a link to the job that one waits for."""
    watched = state.blocker_id or state.job_id
    link = f' <a href="/jobs?job={watched}">Job {watched}</a>' if watched else ""
    return f'<p class="plumb-waiting" role="status"><span class="plumb-spin"></span>{escape(state.text)}{link}</p>'


def no_adapter() -> str:
    """What to do where both columns could only be the base."""
    return (
        '<p class="plumb-hint">There is no adapter of this base to compare with yet. '
        '<a href="/jobs?kind=dpo">Train one on Jobs</a>.</p>'
    )


def note(text: str, busy: bool = False) -> str:
    spin = '<span class="plumb-spin"></span>' if busy else ""
    return f'<p class="plumb-waiting" role="status">{spin}{escape(text)}</p>' if text else ""


def problem(text: str) -> str:
    return f'<p class="plumb-error" role="alert">{escape(text)}</p>' if text else ""
