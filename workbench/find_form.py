"""HTML of the fold-outs at the left of the Samples page: filters, saved views, queues. Pure functions.

The form is drawn once; `static/find.js` fills it in from the address, and makes an address of what is chosen. So a
view that is drawn anew takes nothing away from under somebody's hands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from urllib.parse import urlencode

from storage.facts import MOST
from storage.finding import NUMBERS, ORDERS, STATES
from storage.queues import QUEUES, Queue
from storage.records import HIGHEST, LOWEST, METRICS
from storage.saved_views import SavedView
from workbench.views import go

_PANELS = (("filters", "Filters"), ("views", "Views"), ("queue", "Queue"))


def finder(
    facets: Mapping[str, Sequence[str]], raters: Sequence[str], views: Sequence[SavedView], user: str
) -> str:
    """Search, order, and the fold-outs. `facets`: the values of source and split."""
    tabs = "".join(
        f'<button type="button" class="pf-tab" data-panel="{name}" aria-expanded="false" '
        f'aria-controls="pf-{name}">{title}<span class="pf-set" data-set="{name}"></span></button>'
        for name, title in _PANELS
    )
    return (
        '<div class="pf-find"><form class="pf-form" data-find role="search">'
        '<input type="search" name="q" class="pf-search" id="pb-search" aria-label="Search" maxlength="1000" '
        'placeholder="Search questions, answers, notes" autocomplete="off" spellcheck="false" dir="auto">'
        f'<div class="pf-tabs">{tabs}</div>'
        f'<div class="pf-panel" id="pf-filters" hidden>{_filters(facets, raters)}</div></form>'
        f'<div class="pf-panel" id="pf-views" hidden>{views_panel(views, user)}</div>'
        f'<div class="pf-panel" id="pf-queue" hidden>{_queues()}</div></div>'
    )


def _filters(facets: Mapping[str, Sequence[str]], raters: Sequence[str]) -> str:
    metric = _select("metric", "Score of", _plain(METRICS))
    lowest = _number("low", "from", LOWEST, HIGHEST, 1)
    highest = _number("high", "to", LOWEST, HIGHEST, 1)
    return (
        '<div class="pf-fields">'
        + _select("state", "State", _plain(STATES))
        + _select("order", "Order", ORDERS.items())
        + _select("source", "Source", _plain(facets.get("source", ())))
        + _select("split", "Split", _plain(facets.get("split", ())))
        + f'<div class="pf-range pf-wide">{metric}{lowest}{highest}</div>'
        + _select("rater", "Scored by", _plain(raters))
        + _number("gap", "Judges ≠ people by", LOWEST, HIGHEST, 0.25)
        + _select("images", "Images", _plain(NUMBERS))
        + _select("turns", "Turns", _plain(NUMBERS[1:]))
        + "</div>"
    )


def _plain(values: Iterable[str]) -> list[tuple[str, str]]:
    return [(value, value) for value in values if value]


def _select(name: str, title: str, choices: Iterable[tuple[str, str]]) -> str:
    """`choices`: (value, what it says). Where none of them is "", the first says that anything goes."""
    known = list(choices)
    if all(value for value, _ in known):
        known.insert(0, ("", "any"))
    options = "".join(
        f'<option value="{escape(value, quote=True)}">{escape(text)}</option>' for value, text in known
    )
    return f'<label><span>{title}</span><select name="{name}">{options}</select></label>'


def _number(name: str, title: str, low: float, high: float, step: float, value: str = "") -> str:
    filled = f' value="{escape(value, quote=True)}"' if value else ""
    return (
        f'<label><span>{title}</span><input type="number" name="{name}" min="{low:g}" max="{high:g}" '
        f'step="{step:g}" placeholder="any" inputmode="decimal"{filled}></label>'
    )


# --- saved views ---


def views_panel(views: Sequence[SavedView], user: str) -> str:
    """The person's own views and others' shared ones, and the form that saves what is shown."""
    own = [view for view in views if view.user == user]
    others = [view for view in views if view.user != user]
    listed = _views("Your views", own, user) + _views("Shared by others", others, user)
    if not listed:
        listed = (
            '<p class="pb-sub">No views are saved yet. Set filters, an order or a queue, and give them a name.</p>'
        )
    return (
        f'{listed}<form class="pf-save" data-save-view><input type="text" name="name" maxlength="100" required '
        'placeholder="Name of this view" aria-label="Name of this view" autocomplete="off" dir="auto">'
        '<label class="pf-check"><input type="checkbox" name="shared"> for all</label>'
        '<button type="submit" class="pb-button small">Save</button></form>'
    )


def _views(title: str, views: Sequence[SavedView], user: str) -> str:
    if not views:
        return ""
    return f'<h4>{title}</h4><ul class="pf-views">{"".join(_view(view, user) for view in views)}</ul>'


def _view(view: SavedView, user: str) -> str:
    name = escape(view.name)
    note = ""
    if view.user != user:
        note = f'<span class="pb-sub">{escape(view.user)}</span>'
    elif view.shared:
        note = '<span class="pb-sub">for all</span>'
    drop = (
        f'<button type="button" class="pf-off" data-drop-view="{view.id}" '
        f'aria-label="Delete the view {escape(view.name, quote=True)}">×</button>'
        if view.user == user
        else ""
    )
    return f"<li>{go('?' + urlencode(view.parameters), f'<span dir=auto>{name}</span>')}{note}{drop}</li>"


# --- queues ---

_PLAIN = Queue("unscored")
_SAID = {
    "unscored": "Samples that nobody has scored.",
    "fewer": "Samples that too few people have scored; yours do not come again.",
    "disagree": "Samples on which judges and people differ by at least this much, the mean over metrics.",
    "flagged": "Samples that somebody has flagged.",
    "overlap": "A share of all samples, the same for everybody, so that agreement can be measured.",
}
#: the fields of each kind that has some: (parameter, title, least, most, step, what stands there at first)
FIELDS: dict[str, tuple[tuple[str, str, float, float, float, float], ...]] = {
    "fewer": (("people", "Scored by fewer people than", 1, MOST, 1, _PLAIN.people),),
    "disagree": (("apart", "Differ by at least", 0.25, HIGHEST, 0.25, _PLAIN.gap),),
    "overlap": (
        ("percent", "Share of the samples, in %", 1, 100, 0.1, _PLAIN.percent),
        ("people", "Scored by how many", 2, MOST, 1, _PLAIN.people),
    ),
}


def _queues() -> str:
    """One form: the kind, the one number that it needs, Start. The filters that are set hold in the queue."""
    kinds = "".join(
        f'<label class="pf-kind"><input type="radio" name="queue" value="{kind}"'
        f"{' checked' if kind == 'unscored' else ''}><span>{escape(title)}</span></label>"
        f'<div class="pf-kind-more" data-kind="{kind}"{"" if kind == "unscored" else " hidden"}>'
        f'<p class="pb-sub">{_SAID.get(kind, "")}</p>{_kind_fields(kind)}</div>'
        for kind, title in QUEUES.items()
    )
    return (
        f'<form class="pf-queue-form" data-queue-form>{kinds}<p class="pb-sub">Each sample is held for you '
        "while it is open. The filters that are set hold here too.</p>"
        '<div class="pf-acts"><button type="submit" class="pb-button small primary">Start the queue</button></div>'
        "</form>"
    )


def _kind_fields(kind: str) -> str:
    fields = "".join(
        _number(name, title, low, high, step, f"{first:g}")
        for name, title, low, high, step, first in FIELDS.get(kind, ())
    )
    return f'<div class="pf-fields">{fields}</div>' if fields else ""
