"""The header that all pages share: where one is, how much there is, who one is."""

from __future__ import annotations

from html import escape
from typing import Literal

from sqlite_utils import Database

from storage.finding import SampleFilter, count_samples
from storage.jobs import count_open
from storage.pairs import count_pairs

PageName = Literal[
    "samples",
    "data",
    "judges",
    "agreement",
    "pairs",
    "datasets",
    "jobs",
    "models",
    "chat",
    "contests",
    "evaluation",
    "machine",
    "people",
]
PAGES: tuple[tuple[PageName, str, str], ...] = (
    ("samples", "Samples", "/"),
    ("data", "Data", "/data"),
    ("judges", "Judges", "/judges"),
    ("agreement", "Agreement", "/agreement"),
    ("pairs", "Pairs", "/pairs"),
    ("datasets", "Data sets", "/datasets"),
    ("jobs", "Jobs", "/jobs"),
    ("models", "Models", "/models"),
    ("chat", "Chat", "/chat"),
    ("contests", "Contests", "/contests"),
    ("evaluation", "Evaluation", "/evaluation"),
    ("people", "People", "/people"),
    ("machine", "Machine", "/machine"),
)


def counts(db: Database) -> dict[str, int]:
    """The numbers beside the pages' names; `jobs` are those queued or at work."""
    pairs = count_pairs(db)
    return {
        "samples": count_samples(db, SampleFilter()),
        "pairs": sum(pairs.values()),
        "jobs": count_open(db),
        **pairs,
    }


def header(active: PageName, numbers: dict[str, int] | None = None, user: str = "", login: bool = False) -> str:
    """The header's HTML; without numbers it stands there before they are known. `login`: one can log out."""
    links = []
    for name, title, href in PAGES:
        if name in ("people", "datasets"):  # at the user's name; beside the pairs that are frozen
            continue
        number = (numbers or {}).get(name, 0)
        shown = f"{number:,}" if number else ""
        current = ' aria-current="page"' if name == active else ""
        unit = " open" if name == "jobs" and number else ""
        links.append(
            f'<a href="{href}"{current}>{title}<span class="pb-count" data-count="{name}">{shown}{unit}</span></a>'
        )
    who = ""
    if user:
        current = ' aria-current="page"' if active == "people" else ""
        who = (
            f'<a class="pb-user" href="/people"{current} data-user="{escape(user)}" '
            f'title="You are {escape(user)}; people, and your password"><bdi>{escape(user)}</bdi></a>'
        )
        if login:  # a form: a link could be followed by whoever prefetches
            who += (
                '<form method="post" action="/logout" class="pb-logout">'
                '<button type="submit" class="pb-button small">Log out</button></form>'
            )
    return (
        '<header class="pb-header"><a class="pb-brand" href="/" aria-label="Plumb, start page">'
        '<svg viewBox="0 0 16 16" width="18" height="18" aria-hidden="true"><path d="M8 0v7" '
        'stroke="currentColor" stroke-width="1.4"/><path d="M4.6 7h6.8L8 15.5z" fill="currentColor"/></svg>'
        "Plumb</a>"
        f'<nav aria-label="Pages">{"".join(links)}</nav>{who}</header>'
    )
