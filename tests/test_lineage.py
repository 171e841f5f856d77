"""The family of models: who descends from whom, and the picture of it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from jobs.merged import Merged
from storage.lifecycle import JobStatus
from storage.records import Adapter, Job
from workbench.lineage import HEIGHT, WIDTH, Node, as_list, described, family, layout, picture, shortened

WHEN = "2026-11-23T02:00:00.000+00:00"


def adapter(
    number: int, base: str = "demo", name: str = "", method: str = "dpo", dataset: int | None = 1
) -> Adapter:
    label = name or f"adapter {number}"
    return Adapter(number, label, f"{number:064x}", base, method, 1000, 100 + number, dataset, WHEN)


def job(number: int, start: int | None = None) -> Job:
    """The job that made an adapter of this number."""
    return Job(
        id=100 + number,
        kind="dpo",
        status=JobStatus.DONE,
        config={},
        slot_kind="device",
        device=None,
        slot=None,
        user="ada",
        dataset_id=1,
        adapter_id=start,
        phase="",
        done=0,
        total=0,
        unit="",
        port=None,
        reason="",
        created_at=WHEN,
        started_at=WHEN,
        ended_at=WHEN,
    )


def merged(of: int, base: str = "demo") -> Merged:
    return Merged(base, of, f"adapter {of}", f"{of:064x}", "bfloat16", 9, WHEN)


def shape(forest: list[Node]) -> dict[str, object]:
    return {node.key: shape(list(node.children)) for node in forest}


def test_each_stands_under_what_it_was_made_from() -> None:
    adapters = [
        adapter(1),
        adapter(2),
        adapter(3),
        adapter(4, base="/m/merged/whole"),
        adapter(5, base="owner/other"),
    ]
    jobs = {one.id: one for one in (job(1), job(2, start=1), job(3), job(4), job(5))}
    forest = family(adapters, jobs, {"/m/merged/whole": merged(3)}, {2: 0.875}, {1: "shapes"})
    assert shape(forest) == {
        "base:demo": {
            "adapter:1": {"adapter:2": {}},
            "adapter:3": {"merged:whole": {"adapter:4": {}}},
        },
        "base:owner/other": {"adapter:5": {}},
    }
    second = forest[0].children[0].children[0]
    assert (second.mark, second.lines, second.search) == ("87.5%", ("DPO · shapes",), "?adapter=2")
    assert forest[0].children[0].mark == "", "an accuracy that is not known is not told"


def test_what_is_gone_leaves_its_children_to_the_base() -> None:
    other = replace(merged(3), adapter_sha256="f" * 64)
    forest = family([adapter(2), adapter(3)], {102: job(2, start=1)}, {"/m/merged/whole": other}, {}, {})
    assert shape(forest) == {"base:demo": {"adapter:2": {}, "adapter:3": {}, "merged:whole": {}}}


def test_weights_that_claim_to_be_their_own_base_do_no_harm() -> None:
    assert family([], {}, {"/m/merged/whole": merged(3, base="/m/merged/whole")}, {}, {}) == []


def test_nothing_is_nothing() -> None:
    assert family([], {}, {}, {}, {}) == []
    assert picture([]) == as_list([]) == ""


class Checked(HTMLParser):
    """Fails on what is not closed in its order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[dict[str, str | None]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag == "a":
            self.links.append(dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def forty() -> list[Node]:
    adapters = [adapter(number) for number in range(1, 41)]
    jobs = {100 + number: job(number, start=number - 1 if number % 7 == 0 else None) for number in range(1, 41)}
    return family(adapters, jobs, {"/m/merged/whole": merged(3)}, {}, {1: "shapes"})


def test_every_box_is_a_link_in_picture_and_list() -> None:
    drawn = Checked(picture(forty(), "adapter:7"))
    hrefs = [link["href"] for link in drawn.links]
    assert len(hrefs) == 2 * 42
    assert hrefs[:42] == hrefs[42:], "the list says the same, in the same order"
    assert all("data-go" in link for link in drawn.links)
    assert all(link["aria-label"] for link in drawn.links[:42])
    current = [link["href"] for link in drawn.links if link.get("aria-current")]
    assert current == ["/models?adapter=7", "/models?adapter=7"]


def test_names_cannot_break_out_of_the_picture() -> None:
    bad = '"><script>alert(1)</script>'
    forest = family([adapter(1, base=bad, name=bad)], {101: job(1)}, {}, {}, {1: bad})
    drawn = picture(forest)
    assert "<script" not in drawn
    Checked(drawn)


names = st.integers(0, 30)


@given(st.lists(names, max_size=25))
def test_no_two_boxes_share_a_place(starts: list[int]) -> None:
    """A forest where adapter n started from adapter starts[n], if that is older, else from one of two bases."""
    adapters = [adapter(n, base=f"base-{start % 2}") for n, start in enumerate(starts, 1)]
    jobs = {100 + n: job(n, start if 0 < start < n else None) for n, start in enumerate(starts, 1)}
    placed = layout(family(adapters, jobs, {}, {}, {}))
    places = [(one.column, one.row) for one in placed]
    assert len(set(places)) == len(places)
    assert sorted(one.node.key for one in placed if one.node.kind == "adapter") == sorted(
        f"adapter:{n}" for n in range(1, len(starts) + 1)
    )
    for one in placed:
        if one.parent is not None:
            assert one.parent in places
            assert one.column == one.parent[0] + 1
            assert one.row >= one.parent[1]
        else:
            assert one.column == 0
    rows = sorted({one.row for one in placed})
    assert rows == list(range(len(rows))), "no row is left empty"


def test_the_picture_is_as_large_as_what_it_shows() -> None:
    drawn = picture(forty())
    width, height = map(int, re.findall(r'<svg width="(\d+)" height="(\d+)"', drawn)[0])
    places = [(int(x), int(y)) for x, y in re.findall(r"translate\((\d+) (\d+)\)", drawn)]
    assert max(x for x, _ in places) + WIDTH <= width
    assert max(y for _, y in places) + HEIGHT <= height


@given(st.text(max_size=60), st.integers(4, 30))
def test_shortened_names_fit_and_keep_their_ends(text: str, most: int) -> None:
    short = shortened(text, most)
    assert len(short) <= most
    if len(text) <= most:
        assert short == text
    else:
        assert short[0] == text[0]
        assert short[-1] == text[-1]


def test_a_node_in_words() -> None:
    node = Node("adapter:1", "adapter", "colours", ("DPO · shapes",), "?adapter=1", mark="81.3%")
    assert described(node) == "adapter colours, DPO · shapes, held-out accuracy 81.3%"
    assert described(Node("base:demo", "base", "demo", ("base",), "")) == "base demo"
