"""Addresses of the Samples page: filters, order, queue and sample, read from a query string and written to one.

`?state=unjudged&sample=7` pins a sample in what a filter selects. `?queue=unscored` asks for the next sample of a
queue; once it is there the address names it, so that a reload keeps it. `trail` holds the samples that came before
in the queue, so that one can go back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs, urlencode

from storage.finding import SampleFilter
from storage.queues import Queue, read_queue
from workbench.events import read_id

LONGEST_TRAIL = 20


@dataclass(frozen=True)
class Address:
    """What an address asks for; `trail`: the queue's samples before this one, the oldest first."""

    where: SampleFilter = field(default_factory=SampleFilter)
    sample: int | None = None
    queue: Queue | None = None
    trail: tuple[int, ...] = ()

    def query(self) -> dict[str, str]:
        """Its parameters, without those that say nothing."""
        base = self.queue.as_query() if self.queue else self.where.as_query()
        own = {"sample": str(self.sample) if self.sample is not None else ""}
        if self.queue:
            own["trail"] = ".".join(map(str, self.trail))
        return {name: value for name, value in (base | own).items() if value}

    def href(self) -> str:
        return "?" + urlencode(self.query())

    def filtered(self, where: SampleFilter) -> Address:
        """The same place with another filter: its first sample, or its queue from the beginning."""
        queue = replace(self.queue, where=where) if self.queue else None
        return Address(where, None, queue)

    def at(self, sample: int | None) -> Address:
        """The same list with another sample."""
        return replace(self, sample=sample)

    def onward(self) -> Address:
        """The queue's next sample, whichever that is by then."""
        here = () if self.sample is None else (self.sample,)
        return replace(self, sample=None, trail=(*self.trail, *here)[-LONGEST_TRAIL:])

    def back(self) -> Address | None:
        """The queue's sample before this one; None where it has been forgotten, or none was."""
        return replace(self, sample=self.trail[-1], trail=self.trail[:-1]) if self.trail else None


def read_address(search: str) -> Address:
    """Read a query string; what cannot be read is passed over."""
    query = parameters(search)
    queue = read_queue(query)
    where = queue.where if queue else SampleFilter.from_query(dict(query))
    trail = [found for part in query.get("trail", "").split(".") if (found := read_id(part)) is not None]
    return Address(where, read_id(query.get("sample")), queue, tuple(trail[-LONGEST_TRAIL:]) if queue else ())


def parameters(search: str) -> Mapping[str, str]:
    """A query string's parameters, the last of each name."""
    try:
        found = parse_qs(search.lstrip("?"), max_num_fields=100)
    except ValueError:  # more fields than any address of ours has
        return {}
    return {name: values[-1] for name, values in found.items()}
