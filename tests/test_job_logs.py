"""Logs of runs: their end, an attempt's part, a search over all of one; however large they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench import job_logs
from workbench.job_logs import LONGEST, TAIL_BYTES, Place, search, tail


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


def everything(path: Path, wanted: str, **bounds: int) -> tuple[list[int], int]:
    """(numbers of the lines that match, searches it took), going on until all is seen."""
    numbers, place, searches = [], Place(), 0
    while True:
        found = search(path, wanted, place, **bounds)  # type: ignore[arg-type]
        numbers += [match.line for match in found.matches]
        searches += 1
        if found.rest is None:
            return numbers, searches
        place = found.rest


def test_the_tail_is_whole_lines_and_says_what_it_leaves_out(log: Path) -> None:
    assert tail(log).text == ""
    log.write_text("one\ntwo\nthree\n")
    assert tail(log) == job_logs.Part("one\ntwo\nthree", 14, False)
    assert tail(log, lines=2) == job_logs.Part("two\nthree", 14, True)
    log.write_text("".join(f"line {n}\n" for n in range(100_000)))
    found = tail(log)
    assert found.text.splitlines() == [f"line {n}" for n in range(99_940, 100_000)]
    assert found.cut
    assert found.size == log.stat().st_size
    long = [str(n) * 30_000 for n in range(5)]
    log.write_text("\n".join(long) + "\n")
    assert tail(log).text.splitlines() == long[-2:], "the line that the part begins in is left out"


def test_an_attempts_part_ends_and_begins_where_its_own_lines_do(log: Path) -> None:
    first, second = "a1\na2\n", "b1\nb2\nb3"
    log.write_text(first + second)
    assert tail(log, 0, len(first)).text == "a1\na2"
    assert tail(log, len(first), None).text == "b1\nb2\nb3"
    assert tail(log, len(first), 10_000).size == len(second), "a log that was cut since"
    assert tail(log, 10_000, 20_000).text == ""


def test_a_large_log_is_read_from_its_end_alone(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with log.open("wb") as file:
        file.truncate(1_000_000_000)  # sparse: it takes no disk
        file.seek(0, 2)
        file.write(b"\nthe last line\n")
    taken = []
    real = Path.open

    class Counting:
        def __init__(self, file: object) -> None:
            self.file = file

        def __enter__(self) -> Counting:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()  # type: ignore[attr-defined]

        def seek(self, *where: int) -> int:
            return int(self.file.seek(*where))  # type: ignore[attr-defined]

        def read(self, size: int = -1) -> bytes:
            data: bytes = self.file.read(size)  # type: ignore[attr-defined]
            taken.append(len(data))
            return data

    monkeypatch.setattr(Path, "open", lambda path, mode="r": Counting(real(path, mode)))
    assert tail(log).text.endswith("the last line")
    assert sum(taken) <= TAIL_BYTES


def test_a_search_gives_lines_with_numbers_and_neighbours(log: Path) -> None:
    log.write_text("".join(f"step {n}\n" for n in range(1, 11)) + "Loss is NaN\nend\n")
    found = search(log, "nan")
    assert found.rest is None
    (match,) = found.matches
    assert match == job_logs.Match(11, ("step 9", "step 10"), "Loss is NaN", ("end",))
    assert [match.line for match in search(log, "STEP 1").matches] == [1, 10]
    assert search(log, "step 11").matches == ()
    assert search(log, "").matches == ()
    assert search(log.with_name("none"), "x").matches == ()


def test_what_a_progress_bar_rewrote_is_found_as_it_stood_there(log: Path) -> None:
    log.write_text("begin\n" + "\r".join(f"{n} of 99" for n in range(100)) + "\nend\n")
    (match,) = search(log, "50 of").matches
    assert match.text == "50 of 99"
    assert match.line == 2
    assert match.after == ("end",)


def test_a_long_line_is_shown_around_what_was_found(log: Path) -> None:
    log.write_text("x" * 5_000 + "needle" + "y" * 5_000 + "\n")
    (match,) = search(log, "needle").matches
    assert "needle" in match.text
    assert match.text.startswith("…")
    assert len(match.text) <= LONGEST + 2


def test_a_search_stops_at_its_bounds_and_goes_on_from_there(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_logs, "BLOCK", 1_000)
    log.write_text("".join(f"{n}: {'hit' if n % 3 == 0 else 'miss'}\n" for n in range(1, 3_001)))
    wanted = list(range(3, 3_001, 3))
    found = search(log, "hit", most=7)
    assert len(found.matches) == 7
    assert found.rest is not None
    assert everything(log, "hit", most=7) == (wanted, 143)
    times = iter(range(0, 10_000, 2))
    found = search(log, "hit", seconds=3.0, clock=lambda: float(next(times)))
    assert found.rest is not None
    assert 0 < found.rest.offset < found.size
    assert everything(log, "hit", most=5_000) == (wanted, 1)


@given(
    lines=st.lists(st.text(alphabet="ab \r", max_size=30), max_size=40),
    block=st.integers(1, 50),
    most=st.integers(1, 5),
)
def test_however_it_is_cut_up_the_same_lines_are_found(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], block: int, most: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.txt"
    path.write_bytes("\n".join(lines).encode())
    before, job_logs.BLOCK = job_logs.BLOCK, block
    try:
        numbers, _ = everything(path, "ab", most=most)
    finally:
        job_logs.BLOCK = before
    # A line that is longer than a block may be found once in each of its pieces.
    assert sorted(set(numbers)) == [n for n, line in enumerate(lines, 1) if "ab" in line]


def test_what_is_not_utf8_is_found_and_shown_all_the_same(log: Path) -> None:
    log.write_bytes(b"caf\xe9 \xff\nna\xc3\xafve\n")
    assert search(log, "caf").matches[0].text == "caf\ufffd \ufffd"
    assert search(log, "naïve").matches[0].line == 2
    assert tail(log).text == "caf\ufffd \ufffd\nnaïve"
