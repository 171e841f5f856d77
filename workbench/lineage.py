"""The family of models as a picture: base → adapters → adapters trained further → merged weights. Pure.

`family` makes a forest of records, `layout` gives every node its place, `picture` draws it as SVG whose boxes are
links, and `as_list` says the same as a nested list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal
from urllib.parse import urlencode

from jobs.merged import Merged
from storage.records import Adapter, Job
from workbench.job_words import KIND_NAMES

Kind = Literal["base", "adapter", "merged"]

WIDTH, HEIGHT = 224, 58
GAP_ACROSS, GAP_DOWN, MARGIN = 44, 12, 6
LINE = 25  # characters of a name that fit into a box


@dataclass(frozen=True)
class Node:
    """A base, an adapter or merged weights. `key` is unique: "base:demo", "adapter:3", "merged:whole"."""

    key: str
    kind: Kind
    title: str
    lines: tuple[str, ...]
    search: str
    children: tuple[Node, ...] = ()
    mark: str = ""


@dataclass(frozen=True)
class Placed:
    """A node with its column and row, and where its parent stands."""

    node: Node
    column: int
    row: int
    parent: tuple[int, int] | None


@dataclass
class _Growing:
    """A node whose children are still being found."""

    node: Node
    children: list[_Growing] = field(default_factory=list)

    def whole(self) -> Node:
        return Node(**{**vars(self.node), "children": tuple(child.whole() for child in self.children)})


def family(
    adapters: Sequence[Adapter],
    jobs: Mapping[int, Job],
    merged: Mapping[str, Merged],
    accuracies: Mapping[int, float],
    datasets: Mapping[int, str],
) -> list[Node]:
    """The forest: one tree for each base that has adapters or merged weights, in the order of their names.

    Args:
        jobs: those that made the adapters, by id; a job's adapter_id is the adapter that it started from.
        merged: merged weights by their folder's path, which is their name as a base.
        accuracies: held-out accuracy by adapter, where it is known.
        datasets: names by id.
    """
    grown: dict[str, _Growing] = {}
    for adapter in sorted(adapters, key=lambda one: one.id):
        name = datasets.get(adapter.dataset_id or 0, "")
        grown[f"adapter:{adapter.id}"] = _Growing(_adapter_node(adapter, name, accuracies.get(adapter.id)))
    by_path = {}
    for path, made in merged.items():
        node = _merged_node(path, made)
        by_path[path] = node.key
        grown[node.key] = _Growing(node)
    bases: dict[str, _Growing] = {}

    def base(name: str) -> _Growing:
        """The base itself, or the merged weights that serve as one."""
        if name in by_path:
            return grown[by_path[name]]
        return bases.setdefault(name, _Growing(_base_node(name)))

    for adapter in sorted(adapters, key=lambda one: one.id):
        job = jobs.get(adapter.job_id)
        start = grown.get(f"adapter:{job.adapter_id}") if job else None
        (start or base(adapter.base_model)).children.append(grown[f"adapter:{adapter.id}"])
    known = {adapter.id: adapter.sha256 for adapter in adapters}
    for path, made in merged.items():
        # The number may be another data folder's: what was merged is known by its content.
        own = grown.get(f"adapter:{made.adapter}") if known.get(made.adapter) == made.adapter_sha256 else None
        (own or base(made.base_model)).children.append(grown[by_path[path]])
    return [bases[name].whole() for name in sorted(bases)]


def _base_node(name: str) -> Node:
    short = name.rstrip("/").rsplit("/", 1)[-1]
    lines = (name,) if short != name else ()
    return Node(f"base:{name}", "base", short, ("base", *lines), "?" + urlencode({"view": "runs", "base": name}))


def _adapter_node(adapter: Adapter, dataset: str, accuracy: float | None) -> Node:
    method = KIND_NAMES.get(adapter.method, adapter.method)
    made = f"{method} · {dataset}" if dataset else method
    mark = f"{accuracy:.1%}" if accuracy is not None else ""
    search = "?" + urlencode({"adapter": adapter.id})
    return Node(f"adapter:{adapter.id}", "adapter", adapter.name, (made,), search, mark=mark)


def _merged_node(path: str, made: Merged) -> Node:
    name = path.rstrip("/").rsplit("/", 1)[-1]
    search = "?" + urlencode({"merged": name})
    return Node(f"merged:{name}", "merged", name, (f"full weights · {made.dtype}",), search)


def layout(forest: Iterable[Node]) -> list[Placed]:
    """A column for each generation, a row for each leaf; a parent stands level with its first child."""
    placed: list[Placed] = []
    row = 0

    def place(node: Node, column: int, parent: tuple[int, int] | None) -> None:
        nonlocal row
        here = (column, row)
        placed.append(Placed(node, column, row, parent))
        for number, child in enumerate(node.children):
            if number:
                row += 1
            place(child, column + 1, here)

    for number, tree in enumerate(forest):
        if number:
            row += 1
        place(tree, 0, None)
    return placed


def picture(forest: Sequence[Node], selected: str = "") -> str:
    """The forest as a frame with an SVG in it and the same as a list; "" where there is nothing.

    Args:
        selected: the key of the node that is shown below.
    """
    placed = layout(forest)
    if not placed:
        return ""
    width = MARGIN * 2 + (max(one.column for one in placed) + 1) * (WIDTH + GAP_ACROSS) - GAP_ACROSS
    height = MARGIN * 2 + (max(one.row for one in placed) + 1) * (HEIGHT + GAP_DOWN) - GAP_DOWN
    lines = "".join(_edge(one) for one in placed if one.parent is not None)
    boxes = "".join(_box(one, selected) for one in placed)
    return (
        '<div class="pm-lineage"><div class="pm-frame" role="group" aria-label="Lineage of the models">'
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}">{lines}{boxes}</svg></div>'
        f'<details class="pm-as-list"><summary>The same as a list</summary>{as_list(forest, selected)}</details>'
        "</div>"
    )


def as_list(forest: Sequence[Node], selected: str = "") -> str:
    """The forest as nested lists of links."""
    if not forest:
        return ""
    items = "".join(
        f'<li><a href="/models{escape(node.search, quote=True)}" data-go{_current(node, selected)}>'
        f"{escape(described(node))}</a>{as_list(node.children, selected)}</li>"
        for node in forest
    )
    return f"<ul>{items}</ul>"


def described(node: Node) -> str:
    """A node in words."""
    held = f"held-out accuracy {node.mark}" if node.mark else ""
    return ", ".join(
        part for part in (f"{node.kind} {node.title}", *node.lines, held) if part and part != node.kind
    )


def _position(column: int, row: int) -> tuple[int, int]:
    return MARGIN + column * (WIDTH + GAP_ACROSS), MARGIN + row * (HEIGHT + GAP_DOWN)


def _edge(one: Placed) -> str:
    assert one.parent is not None
    from_x, from_y = _position(*one.parent)
    to_x, to_y = _position(one.column, one.row)
    start, end = from_y + HEIGHT // 2, to_y + HEIGHT // 2
    left, right = from_x + WIDTH, to_x
    if start == end:
        return f'<path class="pm-edge" d="M{left} {start}H{right}"/>'
    middle, bend = left + GAP_ACROSS // 2, 6
    return (
        f'<path class="pm-edge" d="M{left} {start}H{middle - bend}Q{middle} {start} {middle} {start + bend}'
        f'V{end - bend}Q{middle} {end} {middle + bend} {end}H{right}"/>'
    )


def _box(one: Placed, selected: str) -> str:
    node = one.node
    x, y = _position(one.column, one.row)
    room = LINE - (len(node.mark) + 4 if node.mark else 0)
    mark = (
        f'<text class="pm-mark" x="{WIDTH - 12}" y="23" text-anchor="end">{escape(node.mark)}</text>'
        if node.mark
        else ""
    )
    second = escape(shortened(" · ".join(node.lines), LINE + 7))
    return (
        f'<a class="pm-node pm-{node.kind}" href="/models{escape(node.search, quote=True)}" data-go '
        f'data-key="{escape(node.key, quote=True)}" aria-label="{escape(described(node), quote=True)}"'
        f'{_current(node, selected)} transform="translate({x} {y})">'
        f"<title>{escape(described(node))}</title>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
        f'<text class="pm-name" x="12" y="23">{escape(shortened(node.title, room))}</text>{mark}'
        f'<text class="pm-made" x="12" y="43">{second}</text></a>'
    )


def shortened(text: str, most: int) -> str:
    """The text, cut in its middle where it is too long: names that differ at their ends stay apart."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 3
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def _current(node: Node, selected: str) -> str:
    return ' aria-current="true"' if node.key == selected else ""
