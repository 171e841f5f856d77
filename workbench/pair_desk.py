"""The list of the Pairs page: what its address asks for, and acts on all that it selects. Above Gradio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlite_utils import Database

from storage import pairs as store
from storage.database import immediate
from storage.errors import Conflict, UserError
from storage.pair_finding import PairFilter, count_found, find_pairs, pairs_to_decide, people_of_pairs
from storage.pair_trouble import find_troubles
from storage.records import PairStatus
from workbench import pair_list_views as views
from workbench.bulk_desk import Asked, Done
from workbench.context import Context
from workbench.pair_address import Address, read_address

PAGE = 25


def show_list(context: Context, search: str, user: str = "") -> tuple[str, str]:
    """(head, list) that belong to an address; the pairs of this user's votes lead back to their chats."""
    address = read_address(search)
    with context.database() as db:
        troubles = find_troubles(db)
        where = _where(db, address)
        page = find_pairs(db, where, address.after, address.before, PAGE, user)
        if address.before is not None and page.before is None and len(page.views) < PAGE:
            page = find_pairs(db, where, size=PAGE, viewer=user)  # pages count from the list's beginning
        counted = store.count_pairs(db)
        plain = address.trouble is None and not (where.origin or where.user or where.q)
        if plain and where.sample is None:
            found = counted
        else:
            found = {status: count_found(db, replace(where, status=status)) for status in store.STATUSES}
    head = views.head(address, counted, found, plain) + views.troubles(troubles, address)
    return head, views.pair_list(page, address, sum(found.values()))


def show_finder(context: Context) -> str:
    """The form of the filters; plumb's scripts fill in what the address says."""
    with context.database() as db:
        return views.finder(people_of_pairs(db))


def ask(context: Context, act: str, search: str) -> Asked:
    """Count first: how many pairs the act would change.

    Raises:
        UserError: there is no such act, or nothing would be changed.
    """
    status, word = _known(act)
    with context.database() as db:
        ids, selected = _to_change(db, search, status)
    what = _many(len(ids))
    questions = {
        "accepted": f"Accept {what}?",
        "rejected": f"Reject {what}?",
        "proposed": f"Take back the decisions on {what}?",
    }
    there = selected - len(ids)
    note = (
        f"Of {_many(selected)} that the filter selects, {there:,} {_is(there)} {status} already." if there else ""
    )
    return Asked(len(ids), questions[status], word, note)


def do(context: Context, user: str, act: str, search: str, count: int) -> Done:
    """Do it, to as many pairs as was asked about, as one act that one undo takes back.

    Raises:
        UserError: as `ask`.
        Conflict: the filter selects another number by now; nothing is done.
    """
    status, _ = _known(act)
    with context.database() as db, immediate(db):
        ids, _ = _to_change(db, search, status)
        if len(ids) != count:
            raise Conflict(f"It would be {_many(len(ids))} by now, not {count:,}; nothing was done. Ask again.")
        store.set_status(db, user, ids, status)
    return Done(f"{_many(len(ids))} {status}.", True)


def _known(act: str) -> tuple[PairStatus, str]:
    for known, found in views.ACTS.items():
        if act == known:
            return found
    raise UserError(f"act = {act!r:.40}: choose one of {', '.join(views.ACTS)}.")


def _to_change(db: Database, search: str, status: PairStatus) -> tuple[list[int], int]:
    """(the ids of those that would change, how many the filter selects)."""
    where = _where(db, read_address(search))
    selected = count_found(db, where)
    if not selected:
        raise UserError("No pair fits these filters; change or clear them.")
    ids = pairs_to_decide(db, where, status)
    if not ids:
        raise UserError(f"{_many(selected)} fit these filters, and all are {status} already.")
    return ids, selected


def _where(db: Database, address: Address) -> PairFilter:
    """The address' filter, with the pairs in trouble looked up."""
    if address.trouble is None:
        return address.where
    troubles = find_troubles(db, address.among) if address.among else find_troubles(db)
    return replace(address.where, ids=troubles.of(address.trouble))


def _many(number: int) -> str:
    return "1 pair" if number == 1 else f"{number:,} pairs"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def warning(db: Database, statuses: Sequence[PairStatus]) -> tuple[int, str]:
    """(pairs that contradict each other among what would be frozen, where to look at them)."""
    if not statuses:
        return 0, ""
    found = find_troubles(db, statuses, in_use=True).contradiction
    ordered = tuple(status for status in store.STATUSES if status in statuses)
    return len(found), Address(trouble="contradiction", among=ordered).href()
