"""Addresses of the Pairs page, read from a query string and written to one.

The address holds the list's state: `?status=proposed&origin=rule&q=red+cube&after=120`, or `?sample=7`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from urllib.parse import urlencode

from storage.pair_finding import ORIGINS, PairFilter
from storage.pair_trouble import TROUBLES, Trouble
from storage.pairs import STATUSES
from storage.records import PairStatus
from workbench.addresses import parameters
from workbench.events import read_id

LONGEST = 200  # characters of what is searched for


@dataclass(frozen=True)
class Address:
    """The list that an address asks for.

    Attributes:
        trouble: pairs in this trouble alone, `among` those of these statuses (none: all that are not rejected).
        before: the list's page that ends before this id; without one, the page after `after`.
    """

    where: PairFilter = field(default_factory=PairFilter)
    trouble: Trouble | None = None
    among: tuple[PairStatus, ...] = ()
    after: int = 0
    before: int | None = None

    def query(self) -> dict[str, str]:
        """The parameters of its first page, without those that say nothing."""
        where = self.where
        found = {"status": where.status or "", "origin": where.origin, "user": where.user, "q": where.q}
        found |= {"trouble": self.trouble or "", "among": ",".join(self.among)}
        found["sample"] = "" if where.sample is None else str(where.sample)
        return {name: value for name, value in found.items() if value}

    def href(self, **more: int | None) -> str:
        """Its first page, or the one that `after` or `before` says."""
        query = self.query() | {name: str(value) for name, value in more.items() if value is not None}
        return f"/pairs?{urlencode(query)}" if query else "/pairs"

    def with_status(self, status: PairStatus | None) -> Address:
        """The first page of the same filter with another status."""
        return replace(self, where=replace(self.where, status=status), after=0, before=None)


def read_address(search: str) -> Address:
    """Read a query string; what cannot be read is passed over."""
    query = parameters(search)

    def text(name: str) -> str:
        return query.get(name, "").replace("\0", "").strip()[:LONGEST]

    where = PairFilter(
        status=next((known for known in STATUSES if known == query.get("status")), None),
        origin=text("origin") if text("origin") in ORIGINS else "",
        user=text("user"),
        q=text("q"),
        sample=read_id(query.get("sample")),
    )
    trouble = next((known for known in TROUBLES if known == query.get("trouble")), None)
    named = query.get("among", "").split(",")
    among = tuple(known for known in STATUSES if trouble and known in named)
    return Address(where, trouble, among, read_id(query.get("after")) or 0, read_id(query.get("before")))
