"""Where one is on the Evaluation page: the address, read forgivingly and written again (pure).

`/evaluation?purpose=selection&base=adapter:3&grader=rules&chart=pope&model=…`, and of one evaluation's items
`/evaluation?evaluation=17&against=model:demo&show=regressions&category=…&q=…&page=2&item=…`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlencode

from storage.evaluations import PURPOSES
from workbench.evaluation_items import SHOWS, Show
from workbench.events import read_id

LONGEST = 400  # characters of a value that is read
MOST_MODELS = 4
NOBODY = "-"


@dataclass(frozen=True)
class Place:
    """What an address asks for; "" or None where it leaves a choice to the page.

    Attributes:
        purpose, base, grader: of the table.
        chart, models: whose categories are drawn, of which lines.
        evaluation: whose items are shown; None: the table.
        against: the line that its items are compared with; "-": none.
        show, category, q, page, item: of the list, and what is opened.
        hidden: the evaluation that was hidden just now.
    """

    purpose: str = PURPOSES[0]
    base: str = ""
    grader: str = ""
    chart: str = ""
    models: tuple[str, ...] = ()
    evaluation: int | None = None
    against: str = ""
    show: Show = "all"
    category: str = ""
    q: str = ""
    page: int = 1
    item: str = ""
    hidden: int | None = None

    def query(self, **changes: Any) -> str:
        """The query string of this place with changes; "?" for the table as it opens."""
        there = replace(self, **changes)
        plain = Place()
        pairs: list[tuple[str, object]] = []
        for name, value in vars(there).items():
            if value == getattr(plain, name):
                continue
            pairs += [("model", one) for one in value] if name == "models" else [(name, value)]
        return "?" + urlencode(pairs)

    def table(self) -> Place:
        """The table that this evaluation stands in."""
        return Place(self.purpose, self.base, self.grader)

    def items(self, evaluation: int) -> Place:
        """An evaluation's items."""
        return Place(self.purpose, self.base, self.grader, evaluation=evaluation)


def read_place(search: str) -> Place:
    """Read a query string; what cannot be read is passed over."""
    many = parse_qs(search.lstrip("?"), max_num_fields=100) if search.count("&") < 100 else {}
    query = {name: values[-1][:LONGEST].replace("\0", "") for name, values in many.items()}
    purpose, show = query.get("purpose", ""), query.get("show", "")
    models = dict.fromkeys(one[:LONGEST] for one in many.get("model", ()))
    return Place(
        purpose if purpose in PURPOSES else PURPOSES[0],
        query.get("base", ""),
        query.get("grader", ""),
        query.get("chart", ""),
        tuple(models)[:MOST_MODELS],
        read_id(query.get("evaluation")),
        query.get("against", ""),
        show if show in SHOWS else "all",
        query.get("category", ""),
        query.get("q", ""),
        max(1, min(read_id(query.get("page")) or 1, 1_000_000)),
        query.get("item", ""),
        read_id(query.get("hidden")),
    )
