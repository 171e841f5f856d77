"""HTML of the Pairs page's list: its filters, what can be done with all that they select, the cards. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape

from storage.pair_finding import ORIGINS, PairPage
from storage.pair_trouble import TROUBLES, Troubles
from storage.pairs import STATUSES
from storage.records import PairStatus
from workbench.pair_address import Address
from workbench.pair_views import card
from workbench.views import data_counts, empty, go

_ORIGIN_WORDS = {"rule": "by rule", "hand": "by hand", "vote": "by vote", "imported": "came with data"}
_TROUBLE_WORDS = {"contradiction": "contradict another", "duplicate": "say what another says"}
#: act on all of a list → (the status that its pairs get, the button's word)
ACTS: dict[str, tuple[PairStatus, str]] = {
    "accept": ("accepted", "Accept"),
    "reject": ("rejected", "Reject"),
    "propose": ("proposed", "Take decisions back"),
}


def finder(people: Sequence[str]) -> str:
    """The form of the filters. Without values: the address has them, and who types keeps the field."""
    origins = "".join(f'<option value="{name}">{_ORIGIN_WORDS[name]}</option>' for name in ORIGINS)
    names = "".join(f'<option value="{escape(name, quote=True)}">{escape(name)}</option>' for name in people)
    return (
        '<form class="pq-finder" data-find-pairs role="search" aria-label="Filter the pairs">'
        '<input type="search" name="q" maxlength="200" aria-label="Words in question or answers" '
        'placeholder="Words in question or answers">'
        f'<select name="origin" aria-label="Where from"><option value="">from anywhere</option>{origins}</select>'
        f'<select name="user" aria-label="By whom"><option value="">by anybody</option>{names}</select></form>'
    )


def head(address: Address, counted: Mapping[str, int], found: Mapping[str, int], plain: bool) -> str:
    """The filter by status: links with their numbers, those of the rest of the filter; and the acts on all.

    Args:
        counted: all pairs by status, for the page's header.
        found: those that the filter selects, whatever its own status.
        plain: nothing is filtered but the status: the numbers follow what is decided on the cards.
    """
    told = data_counts({**counted, "pairs": sum(counted.values())})
    status, sample = address.where.status, address.where.sample
    if sample is not None:
        return (
            f'<div class="pb-tabs" {told}><b>Pairs of sample <a href="/?sample={sample}">{sample}</a></b>'
            f"{go('/pairs', 'show all pairs', 'pb-tab')}</div>"
        )
    links = [_tab(address, None, sum(found.values()), plain)]
    links += [_tab(address, name, found[name], plain) for name in STATUSES]
    if not plain:
        links.append(go("/pairs", "Clear the filters", "pb-tab"))
    total = found[status] if status else sum(found.values())
    return f'<nav class="pb-tabs" {told} aria-label="Pairs by status">{"".join(links)}</nav>' + _bulk(
        total, status
    )


def _tab(address: Address, status: PairStatus | None, number: int, plain: bool) -> str:
    here = ' aria-current="true"' if status == address.where.status else ""
    live = f' data-count="{status or "pairs"}"' if plain else ""
    title = (status or "all").capitalize()
    href = escape(address.with_status(status).href(), quote=True)
    return (
        f'<a class="pb-tab" href="{href}" data-go{here}>{title} <span class="pb-count"{live}>{number:,}</span></a>'
    )


def _bulk(total: int, status: PairStatus | None) -> str:
    """What can be done with every pair of the list; each is asked about, with its number, before it is done."""
    if not total:
        return ""
    buttons = "".join(
        f'<button type="button" class="pb-button small" data-bulk="{act}" data-bulk-at="/api/pairs/bulk">'
        f"{title}</button>"
        for act, (becomes, title) in ACTS.items()
        if becomes != status
    )
    return (
        f'<details class="pf-bulk"><summary>With all {total:,} of this list …</summary>'
        f'<div class="pf-bulk-acts">{buttons}</div><div class="pf-ask" role="alertdialog" '
        'aria-label="Confirm" hidden></div></details>'
    )


def troubles(found: Troubles, address: Address) -> str:
    """How many pairs contradict each other, or say the same twice, each number a link to them."""
    parts = []
    for kind in TROUBLES:
        number = len(found.of(kind))
        text = f"{number:,} {_TROUBLE_WORDS[kind]}"
        if kind == address.trouble:
            here = f"those that {_TROUBLE_WORDS[kind]}"
            here += f" among the {' and '.join(address.among)} ones" if address.among else ""
            parts.append(f'<b class="pb-warn">{here}</b> {go("/pairs", "show all pairs")}')
        elif number:
            parts.append(go(f"/pairs?trouble={kind}", text, "pb-warn"))
    return f'<p class="pb-sub pb-problems" role="status">{" · ".join(parts)}</p>' if parts else ""


def pair_list(page: PairPage, address: Address, everywhere: int) -> str:
    """A keyset page of cards.

    Args:
        everywhere: how many pairs of any status the rest of the filter selects.
    """
    if not page.views:
        return _nothing(address, everywhere)
    pages = ""
    if page.before is not None:
        pages += go(address.href(), "« First page", "pb-button small")
        pages += go(address.href(before=page.before), "‹ Previous page", "pb-button small")
    if page.after is not None:
        pages += go(address.href(after=page.after), "Next page ›", "pb-button small")
    foot = f'<nav class="pb-pages" aria-label="Pages of the list">{pages}</nav>' if pages else ""
    return "".join(card(view) for view in page.views) + foot


def _nothing(address: Address, everywhere: int) -> str:
    where = address.where
    if address.after:
        return empty("No more pairs", "The list ends before this page.", address.href(), "First page")
    if address.trouble:
        return empty(f"No {address.trouble} is left", "No pair is in this trouble.", "/pairs", "All pairs")
    if where.origin or where.user or where.q:
        if everywhere:
            others = "1 other fits" if everywhere == 1 else f"{everywhere:,} others fit"
            text = f"{others} the rest of the filter: choose another status above."
            return empty(f"No such pair is {where.status}", text)
        rest = replace(address, where=replace(where, origin="", user="", q=""))
        return empty("No pair fits these filters", "Change them, or clear them.", rest.href(), "Clear the filters")
    if where.status:
        return empty(f"No pair is {where.status}", "Choose another status above.")
    return empty(
        "No pairs yet",
        'Make them by the rule on the left, or choose two answers by hand on the <a href="/">Samples</a> page.',
    )
