"""Samples, scores, pairs, data sets: what storage promises."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import USER, World, open_world, settings_for
from jobs.freezing import freeze
from jobs.processes import PROJECT
from storage import history, pairs, upkeep
from storage.backup import backup_database
from storage.database import connect, immediate, migrate, session
from storage.datasets import connected, dataset_rows, get_dataset, hash_rows, split_by_image
from storage.errors import Conflict, DatabaseBusy, DatabaseTooNew, NotFound, UserError
from storage.finding import SampleFilter, count_samples, find_samples, neighbour, page_start
from storage.folder import DataFolder
from storage.rows import rows
from storage.samples import add_sample
from storage.scores import get_judgements, set_score


def test_samples_are_keyed_by_source_and_its_id_not_by_content(world: World) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "why?"}]}]
    assert add_sample(world.db, "a", "1", messages) is not None
    assert add_sample(world.db, "a", "1", messages) is None
    assert add_sample(world.db, "a", "2", messages) is not None
    assert add_sample(world.db, "b", "1", messages) is not None


def test_a_sample_must_end_with_the_user(world: World) -> None:
    with pytest.raises(UserError, match="must end with the user's turn"):
        add_sample(world.db, "a", "1", [{"role": "assistant", "content": "hello"}])


def test_search_takes_every_character_as_text(world: World) -> None:
    world.sample(1, 'is there a "red" circle?')
    world.sample(2, "what colour is it?")
    for text, expected in (
        ("red circ", 1),
        ('"red"', 1),
        ("NOT red OR", 0),
        ("col*", 1),
        ('"', 0),
        ("(", 0),
        ("re\0d", 0),
    ):
        assert count_samples(world.db, SampleFilter(q=text)) == expected, text


def test_filters_page_and_walk_in_the_same_order(world: World) -> None:
    ids = [world.sample(n, split="train" if n % 2 else "test") for n in range(1, 12)]
    where = SampleFilter(split="train")
    expected = ids[::2]
    first = [sample.id for sample in find_samples(world.db, where, limit=4)]
    second = [sample.id for sample in find_samples(world.db, where, after=first[-1], limit=4)]
    assert first + second == expected
    assert neighbour(world.db, where, expected[0], forward=True) == expected[1]
    assert neighbour(world.db, where, expected[0], forward=False) is None
    assert page_start(world.db, where, expected[4], size=4) == expected[3]
    assert page_start(world.db, where, expected[1], size=4) == 0


def test_states_of_samples(world: World) -> None:
    bare, judged, scored = world.sample(1), world.sample(2), world.sample(3)
    world.judged(judged, [12, 3])
    own = world.candidates(scored, ["a circle", "a square"])
    set_score(world.db, USER, own[0].id, "correctness", 4)
    found = {
        state: [sample.id for sample in find_samples(world.db, SampleFilter(state=state))]
        for state in ("no candidates", "unjudged", "not scored by people", "paired", "unpaired")
    }
    assert found == {
        "no candidates": [bare],
        "unjudged": [scored],
        "not scored by people": [judged],
        "paired": [],
        "unpaired": [bare, judged, scored],
    }


def test_a_persons_scores_stand_apart_from_a_judges(world: World) -> None:
    sample = world.sample()
    candidates = world.judged(sample, [12, 3])
    set_score(world.db, USER, candidates[0].id, "helpfulness", 0)
    set_score(world.db, "bob", candidates[0].id, "helpfulness", 1)
    by_rater = {j.rater.name: j.scores[0].helpfulness for j in get_judgements(world.db, [sample])[sample]}
    assert by_rater == {"test-judge": 4, USER: 0, "bob": 1}


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("charm", 1, "Unknown metric 'charm'"),
        ("correctness", 5, "correctness = 5"),
        ("correctness", -1, "correctness = -1"),
        ("correctness", 3.5, "3.5"),
        ("correctness", "4", "'4'"),
        ("correctness", True, "True"),
    ],
)
def test_bad_scores_are_refused(world: World, metric: str, value: object, text: str) -> None:
    candidate = world.candidates(world.sample(), ["a"])[0]
    with pytest.raises(UserError, match=text):
        set_score(world.db, USER, candidate.id, metric, value)  # type: ignore[arg-type]
    assert upkeep.stats(world.db, world.folder)["actions"] == 0


def test_a_pair_by_hand_and_what_it_refuses(world: World) -> None:
    sample, other = world.sample(1), world.sample(2)
    one, two, same, empty = world.candidates(sample, ["a circle", "a square", "a circle", " "])
    far = world.candidates(other, ["x"])[0]
    pair = pairs.choose_by_hand(world.db, USER, one.id, two.id)
    assert (pair.status, pair.origin) == ("accepted", "hand")
    assert pairs.choose_by_hand(world.db, USER, one.id, two.id).id == pair.id
    flipped = pairs.choose_by_hand(world.db, USER, two.id, one.id)
    assert (flipped.id, flipped.chosen_id) == (pair.id, two.id)
    for chosen, rejected, text in (
        (one.id, one.id, "both chosen and rejected"),
        (one.id, far.id, "different samples"),
        (one.id, same.id, "same text"),
        (one.id, empty.id, "is empty"),
    ):
        with pytest.raises(UserError, match=text):
            pairs.choose_by_hand(world.db, USER, chosen, rejected)
    with pytest.raises(NotFound, match="no candidate 999"):
        pairs.choose_by_hand(world.db, USER, one.id, 999)


def test_a_persons_choice_does_not_stand_on_a_rules_scores(world: World) -> None:
    sample = world.sample()
    one, two = world.judged(sample, [12, 3])
    judged = get_judgements(world.db, [sample])[sample][0].id
    pairs.add_rule_pairs(world.db, USER, {}, [pairs.NewPair(sample, one.id, two.id, 12, 3, (judged,))])
    stands_on = "SELECT judgement_id FROM pair_judgements"
    assert rows(world.db, stands_on) == [{"judgement_id": judged}]
    pairs.flip(world.db, USER, 1)
    assert rows(world.db, stands_on) == []
    history.undo(world.db, USER)
    assert rows(world.db, stands_on) == [{"judgement_id": judged}]


def test_a_rule_leaves_alone_what_people_decided(world: World) -> None:
    sample = world.sample()
    one, two = world.candidates(sample, ["a", "b"])
    pairs.choose_by_hand(world.db, USER, one.id, two.id)
    assert pairs.add_rule_pairs(world.db, USER, {}, [pairs.NewPair(sample, two.id, one.id)]) == 0
    assert [pair.chosen_id for pair in pairs.pairs_of_sample(world.db, sample)] == [one.id]


def frozen_pairs(world: World, number: int, name: str = "first", **options: float) -> int:
    for n in range(number):
        sample = world.sample(n + 1)
        one, two = world.candidates(sample, [f"good {n}", f"bad {n}"])
        pairs.choose_by_hand(world.db, USER, one.id, two.id)
    return freeze(world.db, USER, name, **options).id  # type: ignore[arg-type]


def test_a_frozen_data_set_does_not_move_with_the_live_tables(world: World) -> None:
    dataset_id = frozen_pairs(world, 10, heldout_percent=20)
    before = [*dataset_rows(world.db, dataset_id), *dataset_rows(world.db, dataset_id, kind="sample")]
    frozen = get_dataset(world.db, "first")
    assert frozen.counts["train"] + frozen.counts["heldout"] == 10
    assert frozen.counts["heldout"] == 2
    for view in pairs.list_pairs(world.db):
        pairs.flip(world.db, USER, view.pair.id)
    after = [*dataset_rows(world.db, dataset_id), *dataset_rows(world.db, dataset_id, kind="sample")]
    assert after == before
    assert [row.position for row in before] == list(range(20)), "pairs, then the samples behind them"
    assert frozen.hash == hash_rows([row.split for row in before], [row.row for row in before])
    assert freeze(world.db, USER, "second", heldout_percent=20).hash != frozen.hash


def test_two_data_sets_of_one_name_and_one_of_no_pairs(world: World) -> None:
    with pytest.raises(UserError, match="no pairs that are accepted"):
        freeze(world.db, USER, "empty")
    frozen_pairs(world, 3)
    with pytest.raises(Conflict, match="named 'first' already"):
        freeze(world.db, USER, "first")
    with pytest.raises(UserError, match="name = ''"):
        freeze(world.db, USER, "  ")
    with pytest.raises(UserError, match="held-out = 95"):
        freeze(world.db, USER, "x", heldout_percent=95)
    with pytest.raises(NotFound, match="there are: first"):
        get_dataset(world.db, "nonsense")


def test_pairs_of_one_image_cannot_be_held_out(world: World) -> None:
    for n in range(10):
        one, two = world.candidates(world.sample(n + 1, colour=7), [f"good {n}", f"bad {n}"])
        pairs.choose_by_hand(world.db, USER, one.id, two.id)
    with pytest.raises(UserError, match="share their images"):
        freeze(world.db, USER, "x", heldout_percent=20)
    assert freeze(world.db, USER, "x", heldout_percent=0).counts["train"] == 10


def test_what_is_frozen_cannot_be_undone_away(world: World) -> None:
    frozen_pairs(world, 1, heldout_percent=0)
    with pytest.raises(Conflict, match="frozen data set"):
        history.undo(world.db, USER)
    assert len(pairs.list_pairs(world.db)) == 1


@given(
    groups=st.lists(
        st.lists(st.integers(0, 12).map(str), min_size=1, max_size=3, unique=True), min_size=1, max_size=30
    ),
    percent=st.integers(0, 90),
    seed=st.integers(0, 5),
)
def test_no_image_is_on_both_sides_of_a_split(groups: list[list[str]], percent: int, seed: int) -> None:
    out = split_by_image(groups, percent, seed)
    held = {key for keys, is_out in zip(groups, out, strict=True) for key in keys if is_out}
    kept = {key for keys, is_out in zip(groups, out, strict=True) for key in keys if not is_out}
    assert not held & kept
    assert kept, "something is always left to train on"
    assert out == split_by_image(groups, percent, seed)


@given(
    pairs=st.lists(st.lists(st.integers(0, 20).map(str), min_size=1, max_size=2, unique=True), max_size=20),
    samples=st.lists(st.lists(st.integers(0, 20).map(str), min_size=1, max_size=2, unique=True), max_size=20),
    percent=st.integers(0, 90),
    seed=st.integers(0, 5),
)
def test_pairs_and_samples_are_split_together(
    pairs: list[list[str]], samples: list[list[str]], percent: int, seed: int
) -> None:
    """The percentage is of the pairs; samples go with them, and those without pairs by their own number."""
    groups = [*pairs, *samples]
    out = split_by_image(groups, percent, seed, len(pairs))
    held = {key for keys, is_out in zip(groups, out, strict=True) for key in keys if is_out}
    kept = {key for keys, is_out in zip(groups, out, strict=True) for key in keys if not is_out}
    assert not held & kept
    assert not pairs or not all(out[: len(pairs)]), "a pair is always left to train on"
    names = connected(groups)
    shared = set(names[: len(pairs)])
    alone = [is_out for name, is_out in zip(names, out, strict=True) if name not in shared]
    assert not alone or not all(alone), "and a sample of those without"
    if len(set(names)) == len(names):  # nothing shared: the numbers are exact, as far as one remains
        assert sum(out[: len(pairs)]) == min(round(len(pairs) * percent / 100), max(0, len(pairs) - 1))
        assert sum(alone) == min(round(len(alone) * percent / 100), max(0, len(alone) - 1))
    if all(set(keys) <= {key for pair in pairs for key in pair} and len(keys) == 1 for keys in samples):
        assert out[: len(pairs)] == split_by_image(pairs, percent, seed), "samples do not move the pairs' split"


def test_check_finds_what_is_wrong(world: World) -> None:
    sample = world.sample()
    assert upkeep.check(world.db, world.folder) == []
    image = next(world.folder.images.rglob("*.png"))
    image.write_bytes(b"cut")
    next(world.folder.thumbnails.rglob("*.webp")).unlink()
    world.db.conn.execute("PRAGMA foreign_keys = OFF")
    world.db.conn.execute(
        "INSERT INTO sample_images (sample_id, position, sha256) VALUES (?, 9, 'gone')", [sample]
    )
    kinds = sorted(finding.kind for finding in upkeep.check(world.db, world.folder))
    assert kinds == ["damaged file", "foreign key", "missing file"]


def test_a_backup_is_a_whole_database_and_never_overwrites(world: World, tmp_path: Path) -> None:
    world.sample()
    target = tmp_path / "backup.db"
    assert backup_database(world.folder, target) > 0
    copy = sqlite3.connect(target)
    assert copy.execute("SELECT count(*) FROM samples").fetchone() == (1,)
    copy.close()
    with pytest.raises(UserError, match="is there already"):
        backup_database(world.folder, target)


def test_a_backup_of_a_folder_with_a_strange_name(tmp_path: Path) -> None:
    made = open_world(tmp_path / "my#data?x=%41")
    made.sample()
    made.db.close()
    backup_database(made.folder, tmp_path / "b.db")
    copy = sqlite3.connect(tmp_path / "b.db")
    assert copy.execute("SELECT count(*) FROM samples").fetchone() == (1,)
    copy.close()


def test_paths_stay_inside_the_data_folder(world: World, tmp_path: Path) -> None:
    assert world.folder.inside("images/x.png").is_relative_to(world.folder.root)
    (world.folder.root / "link").symlink_to(tmp_path)
    for path in ("../x", "/etc/passwd", "images/../../x", "link/x"):
        with pytest.raises(UserError, match="leaves the data folder"):
            world.folder.inside(path)


def test_a_locked_database_says_so_and_writes_nothing(world: World) -> None:
    other = sqlite3.connect(world.folder.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with session(world.folder, busy_seconds=0.05) as db:
        candidate_free = upkeep.stats(db, world.folder)["samples"]
        with pytest.raises(DatabaseBusy, match="held by another process"), immediate(db):
            pass
    assert candidate_free == 0
    other.execute("ROLLBACK")
    other.close()


def test_a_database_from_a_newer_version_is_left_alone(world: World) -> None:
    world.db.conn.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('plumb', 'm999_later', 'x')"
    )
    with pytest.raises(DatabaseTooNew, match="m999_later"):
        migrate(world.folder)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path).create()
    folder.database.write_text("this is no database, however long it is " * 30)
    with pytest.raises(UserError, match="not a SQLite database"):
        connect(folder)


def test_processes_that_start_at_once_migrate_once(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path).create()
    ran: list[list[str]] = []
    threads = [threading.Thread(target=lambda: ran.append(migrate(folder))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, *others = sorted(ran, key=len, reverse=True)
    assert first[0] == "m001_create_tables"
    assert others == [[]] * 11


def test_one_key_a_folder_whoever_is_first(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path).create()
    keys: set[bytes] = set()
    threads = [threading.Thread(target=lambda: keys.add(folder.key())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 1
    assert (folder.runtime / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_the_commands_print_json(tmp_path: Path) -> None:
    data = str(settings_for(tmp_path).data)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "storage", *words, "--data", data]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)

    assert json.loads(run("import", "easy-vqa", "--number", "6", "--json").stdout) == {"added": 6}
    assert json.loads(run("import", "easy-vqa", "--number", "6", "--json").stdout) == {"added": 0}
    assert json.loads(run("stats", "--json").stdout)["samples"] == 6
    assert json.loads(run("check", "--json").stdout) == {"ok": True, "findings": []}
    assert json.loads(run("backup", str(tmp_path / "b.db"), "--json").stdout)["bytes"] > 0
    refused = run("import", "easy-vqa", "--number", "0")
    assert refused.returncode == 1
    assert refused.stderr.strip() == "number = 0: import at least 1 sample."


def test_whoever_waits_for_the_write_lock_gets_it_and_keeps_waiting_as_before(world: World) -> None:
    entered = threading.Event()

    def wait() -> None:
        with session(world.folder, busy_seconds=30) as db, immediate(db):
            assert db.conn.execute("PRAGMA busy_timeout").fetchone()[0] == 30_000
            entered.set()

    with immediate(world.db):
        waiting = threading.Thread(target=wait)
        waiting.start()
        with session(world.folder, busy_seconds=0.05) as db:
            with pytest.raises(DatabaseBusy, match="held by another process"), immediate(db):
                pass
            assert db.conn.execute("PRAGMA busy_timeout").fetchone()[0] == 50, "also where it was refused"
        assert not entered.is_set()
    waiting.join()
    assert entered.is_set()
