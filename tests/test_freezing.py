"""Freezing: which samples and answers a data set holds, its rule, its hash, its split."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from factories import USER, World, metrics_of, open_world
from jobs.freezing import Contents, contents, contents_of, freeze, scores_for
from jobs.pairing import PairRule, ScoredSample, deciding_judgement, preview
from storage import pairs
from storage.database import connect, snapshot
from storage.datasets import dataset_rows, freeze_pairs, get_dataset
from storage.discarding import discard
from storage.errors import Conflict, UserError
from storage.records import METRICS, Candidate, DatasetRow, Judgement, Rater, Score
from storage.scored import walk_judged, walk_scored
from storage.scores import add_judgement, ensure_rater, set_score

JUDGE = ("gemini", "plumb-1", "all answers together")


def judge(
    world: World, sample_id: int, candidates: Sequence[Candidate], qualities: Sequence[int], name: str = "gemini"
) -> None:
    rater = ensure_rater(world.db, "judge", name, *JUDGE[1:])
    scores = [
        {"candidate_id": candidate.id, **metrics_of(quality)}
        for candidate, quality in zip(candidates, qualities, strict=True)
    ]
    add_judgement(world.db, rater_id=rater, sample_id=sample_id, job_id=None, state="ok", scores=scores)


def by_hand(world: World, candidate: Candidate, value: int = 4, metrics: Sequence[str] = METRICS) -> None:
    for metric in metrics:
        set_score(world.db, USER, candidate.id, metric, value)


def pair(world: World, candidates: Sequence[Candidate]) -> None:
    pairs.choose_by_hand(world.db, USER, candidates[0].id, candidates[1].id)


def by_rule(world: World, rule: PairRule | None = None) -> None:
    rule = rule or PairRule()
    found = preview((ScoredSample(*scored) for scored in walk_scored(world.db)), rule)
    pairs.add_rule_pairs(world.db, USER, rule.stored(), found.pairs)
    pairs.accept_proposed(world.db, USER)


def samples_in(world: World, name: str) -> dict[int, DatasetRow]:
    rows = dataset_rows(world.db, get_dataset(world.db, name).id, kind="sample")
    return {row.sample_id: row for row in rows}


def scored(world: World, number: int, qualities: Sequence[int] = (9, 1), **options: Any) -> int:
    sample = world.sample(number, **options)
    judge(world, sample, world.candidates(sample, [f"answer {k} of {number}" for k in range(2)]), qualities)
    return sample


# --- what is in it ---


def test_a_set_holds_its_pairs_samples_and_every_sample_with_a_complete_score(world: World) -> None:
    unscored, close, one, partial, bare = (world.sample(number) for number in range(1, 6))
    pair(world, world.candidates(unscored, ["good", "bad"]))
    judge(world, close, world.candidates(close, ["a", "b"]), (5, 5))
    judge(world, one, world.candidates(one, ["alone"]), (7,))
    first, _ = world.candidates(partial, ["x", "y"])
    by_hand(world, first, metrics=METRICS[:4])
    world.candidates(bare, ["p", "q"])
    dataset = freeze(world.db, USER, "first", heldout_percent=0)

    found = samples_in(world, "first")
    assert list(found) == [unscored, close, one]
    assert found[unscored].row["answers"] == []
    assert found[unscored].row["rater"] is None
    assert [answer["text"] for answer in found[close].row["answers"]] == ["a", "b"]
    assert found[close].row["rater"] == dict(zip(("name", "version", "mode"), JUDGE, strict=True), kind="judge")
    assert found[one].row["answers"] == [
        {"candidate_id": found[one].row["answers"][0]["candidate_id"], "text": "alone", **metrics_of(7)}
    ]
    assert found[one].row["reference"] == "circle"
    assert found[one].row["messages"][0]["content"][1]["text"] == "what shape is in the image?"
    assert [row.kind for row in dataset_rows(world.db, dataset.id)] == ["pair"]
    assert contents_of(dataset) == Contents(pairs=1, samples=2, answers=3, references=3)


def test_a_person_goes_before_a_judge_where_enough_is_scored(world: World) -> None:
    """What a person has only begun decides nothing, where a judge has scored two."""
    whole, begun, only = (world.sample(number) for number in (1, 2, 3))
    for sample in (whole, begun):
        candidates = world.candidates(sample, ["a", "b"])
        judge(world, sample, candidates, (9, 1))
        for candidate in candidates[: 2 if sample == whole else 1]:
            by_hand(world, candidate, 2)
    one, _ = world.candidates(only, ["a", "b"])
    by_hand(world, one, 3)
    by_rule(world)
    freeze(world.db, USER, "people first", ["accepted"], 0)
    kinds = {sample: row.row["rater"]["kind"] for sample, row in samples_in(world, "people first").items()}
    assert kinds == {whole: "person", begun: "judge", only: "person"}
    freeze(world.db, USER, "judges", ["accepted"], 0, raters="judges")
    assert {row.row["rater"]["kind"] for row in samples_in(world, "judges").values()} == {"judge"}


def test_one_judge_can_be_chosen(world: World) -> None:
    sample = world.sample()
    candidates = world.candidates(sample, ["a", "b"])
    judge(world, sample, candidates, (9, 1))
    judge(world, sample, candidates, (2, 7), "other")
    pair(world, candidates)
    freeze(world.db, USER, "latest", heldout_percent=0)
    freeze(world.db, USER, "chosen", heldout_percent=0, judge=JUDGE)
    assert samples_in(world, "latest")[sample].row["rater"]["name"] == "other"
    chosen = samples_in(world, "chosen")[sample].row
    assert chosen["rater"]["name"] == "gemini"
    assert [chosen["answers"][0][metric] for metric in METRICS] == list(metrics_of(9).values())
    assert get_dataset(world.db, "chosen").rule["judge"] == list(JUDGE)


def test_what_is_frozen_stays_when_scores_and_texts_change(world: World) -> None:
    sample = scored(world, 1)
    by_rule(world)
    freeze(world.db, USER, "first", heldout_percent=0)
    before = samples_in(world, "first")
    by_hand(world, world.candidates(sample, ["new"])[0])
    world.db.conn.execute("UPDATE samples SET reference = 'square'")
    world.db.conn.execute("UPDATE candidates SET text = 'changed'")
    assert samples_in(world, "first") == before


_scores = st.lists(
    st.tuples(
        st.sampled_from([("person", "ada", "", ""), ("judge", "one", "1", "t"), ("judge", "two", "1", "t")]),
        st.lists(st.booleans(), min_size=3, max_size=3),
    ),
    max_size=4,
)


@given(given=_scores, raters=st.sampled_from(["people before judges", "people", "judges"]))
def test_a_sample_is_decided_as_its_pair_would_be(given: Any, raters: str) -> None:
    """Where two are scored, pair and answers stand on one judgement; where none is, there are no answers."""
    full = dict.fromkeys(METRICS, 3)
    judgements = [
        Judgement(
            id=number,
            rater=Rater(hash(rater) % 1000, *rater),
            sample_id=1,
            job_id=None,
            state="ok",
            raw="",
            reason="",
            tokens_in=0,
            tokens_out=0,
            cost=0.0,
            created_at="",
            scores=tuple(
                Score(place, **full) if is_whole else Score(place, helpfulness=1)
                for place, is_whole in enumerate(whole)
            ),
        )
        for number, (rater, whole) in enumerate(given)
    ]
    sample = ScoredSample(1, (), judgements)
    decided, of_pair = scores_for(sample, raters), deciding_judgement(sample, raters)
    if of_pair is not None:
        assert decided == of_pair
    if decided is None:
        assert deciding_judgement(sample, raters, least=1) is None
    else:
        assert any(score.complete for score in decided.scores)


def test_the_lean_reading_decides_as_the_full_one(world: World) -> None:
    for number in range(1, 6):
        sample = scored(world, number, (number, 9 - number))
        by_hand(world, world.candidates(sample, ["mine"])[0], number % 5)
    judge(world, 3, [], ())  # an ok judgement without scores is its rater's latest all the same
    full = {sample: judgements for sample, _, judgements in walk_scored(world.db)}
    lean = dict(walk_judged(world.db))
    assert lean.keys() == full.keys()
    for sample, judgements in full.items():
        assert [(one.id, one.rater, one.scores) for one in lean[sample]] == [
            (one.id, one.rater, one.scores) for one in judgements
        ]


# --- what is told of it ---


def test_the_rule_tells_raters_rubrics_and_what_made_the_pairs(world: World) -> None:
    for number in range(1, 4):
        scored(world, number)
    by_rule(world)
    hand = world.sample(8)
    pair(world, world.candidates(hand, ["yes", "no"]))
    person = world.sample(9)
    by_hand(world, world.candidates(person, ["a", "b"])[0])
    rule = freeze(world.db, USER, "first", heldout_percent=0, seed=3).rule
    assert rule["raters"] == [
        {"kind": "judge", "name": "gemini", "version": "plumb-1", "mode": JUDGE[2], "judgements": 3},
        {"kind": "person", "name": USER, "version": "", "mode": "", "judgements": 1},
        {"kind": "person", "name": USER, "version": "", "mode": "pairs by hand", "pairs": 1},
    ]
    assert rule["rubrics"] == ["plumb-1"]
    assert rule["pair_rules"] == [{"rule": PairRule().stored(), "pairs": 3}]
    assert (rule["statuses"], rule["heldout_percent"], rule["seed"]) == (["accepted"], 0, 3)
    assert (rule["whose_scores"], rule["judge"]) == ("people before judges", None)


def test_a_judgement_behind_pair_and_sample_counts_once(world: World) -> None:
    scored(world, 1)
    by_rule(world)
    (rater,) = freeze(world.db, USER, "first", heldout_percent=0).rule["raters"]
    assert rater["judgements"] == 1, "the sample's judgement is the pair's"


def test_the_contents_before_are_the_contents_after(world: World) -> None:
    for number in range(1, 7):
        scored(world, number, (9, 1) if number % 2 else (5, 5), reference=None if number == 2 else "circle")
    by_rule(world)
    world.candidates(world.sample(8), ["not", "scored"])
    before = contents(world.db)
    assert before == contents_of(freeze(world.db, USER, "first", heldout_percent=20))
    assert str(before) == "3 pairs, 6 samples with 12 scored answers, 5 references"
    assert str(Contents(1, 1, 1, 1)) == "1 pair, 1 sample with 1 scored answer, 1 reference"
    assert contents(world.db, ["rejected"]) == Contents(0, 6, 12, 5)


@example([[("gemini", 0)], [("gemini", 2)]], "judges", None)
@example([[("bob", 1), ("gemini", 3)], [("bob", 2), ("gemini", 3)]], "people before judges", JUDGE)
@settings(max_examples=25, deadline=None)
@given(
    drawn=st.lists(
        st.lists(st.tuples(st.sampled_from(["gemini", "other", "bob"]), st.integers(0, 3)), max_size=4),
        min_size=1,
        max_size=5,
    ),
    raters=st.sampled_from(["people before judges", "people", "judges"]),
    chosen=st.sampled_from([None, JUDGE]),
)
def test_whoever_judged_the_contents_are_what_freezing_finds(
    drawn: list[list[tuple[str, int]]], raters: str, chosen: tuple[str, str, str] | None
) -> None:
    """Counted in SQL, and decided once for all samples of a kind: the same as reading every score."""
    with tempfile.TemporaryDirectory() as place:
        world = open_world(Path(place))
        pair(world, world.candidates(world.sample(1), ["good", "bad"]))
        for number, judgements in enumerate(drawn, start=2):
            sample = world.sample(number, reference="  " if number % 2 else "circle")
            candidates = world.candidates(sample, ["a", " \u2003\n", "c"])
            for name, scores in judgements:
                if name == "bob":
                    for candidate in candidates[:scores]:
                        by_hand(world, candidate)
                else:
                    judge(world, sample, candidates[:scores], [5] * scores, name)
        before = contents(world.db, raters=raters, judge=chosen)
        dataset = freeze(world.db, USER, "first", heldout_percent=0, raters=raters, judge=chosen)
        world.db.close()
    assert before == contents_of(dataset)


def test_empty_answers_are_kept_and_not_counted(world: World) -> None:
    full, half, none = (world.sample(number) for number in (1, 2, 3))
    for sample, texts in ((full, ["a", "b"]), (half, ["a", " \n"]), (none, ["", "\u00a0"])):
        judge(world, sample, world.candidates(sample, texts), (5, 5))
    pair(world, world.candidates(world.sample(4), ["good", "bad"]))
    counted = contents(world.db)
    assert (counted.samples, counted.answers) == (2, 3)
    assert counted == contents_of(freeze(world.db, USER, "first", heldout_percent=0))
    assert [len(row.row["answers"]) for row in samples_in(world, "first").values()] == [2, 2, 2, 0]


def test_a_set_without_pairs_is_refused_before_anything_is_read(world: World) -> None:
    scored(world, 1)
    with pytest.raises(UserError, match="no pairs that are accepted"):
        freeze(world.db, USER, "first")


# --- hash and split ---


def fill(world: World, name: str = "gemini", quality: int = 9, skip: int = 0) -> str:
    """Two scored samples and their pairs, under ids that `skip` moves; returns the hash."""
    for number in range(skip):
        world.candidates(world.sample(100 + number), ["a", "b"])
    for number in (1, 2):
        sample = world.sample(number)
        judge(world, sample, world.candidates(sample, ["good", "bad"]), (quality, 1), name)
    by_rule(world)
    return freeze(world.db, USER, "first", heldout_percent=50).hash


def test_the_hash_is_of_the_content_alone(tmp_path: Path) -> None:
    """Not of this database's ids, nor of who judged: but of every score, text and reference."""
    worlds = [open_world(tmp_path / str(number)) for number in range(4)]
    first = fill(worlds[0])
    assert fill(worlds[1], skip=3) == first
    assert fill(worlds[2], name="another") == first
    assert fill(worlds[3], quality=8) != first
    worlds[0].db.conn.execute("UPDATE samples SET reference = 'square' WHERE id = 1")
    assert freeze(worlds[0].db, USER, "again", heldout_percent=50).hash != first
    for world in worlds:
        world.db.close()


def split_of_texts(world: World, skip: int) -> tuple[str, dict[str, str]]:
    """Hash and split of twelve samples without images, whose ids begin behind `skip` others."""
    for number in range(skip):
        world.sample(100 + number)
    for number in range(12):
        candidates = world.candidates(world.sample(number, f"question {number}", images=0), ["good", "bad"])
        pair(world, candidates)
    dataset = freeze(world.db, USER, "first", heldout_percent=25)
    found = dataset_rows(world.db, dataset.id)
    return dataset.hash, {row.row["messages"][0]["content"][0]["text"]: row.split for row in found}


def test_samples_without_images_are_split_by_their_text_and_not_by_their_ids(tmp_path: Path) -> None:
    worlds = [open_world(tmp_path / str(number)) for number in range(2)]
    found = [split_of_texts(world, skip) for world, skip in zip(worlds, (0, 7), strict=True)]
    assert found[0] == found[1]
    assert list(found[0][1].values()).count("heldout") == 3
    for world in worlds:
        world.db.close()


def test_samples_of_the_same_text_are_on_one_side(world: World) -> None:
    for number in range(12):
        pair(world, world.candidates(world.sample(number, f"question {number // 3}", images=0), ["good", "bad"]))
    found = dataset_rows(world.db, freeze(world.db, USER, "first", heldout_percent=25).id)
    sides: dict[str, set[str]] = {}
    for row in found:
        sides.setdefault(row.row["messages"][0]["content"][0]["text"], set()).add(row.split)
    assert [len(side) for side in sides.values()] == [1] * 4


def test_no_image_is_in_two_splits_of_pairs_and_samples(world: World) -> None:
    for number in range(1, 25):
        scored(world, number, (9, 1) if number % 3 else (5, 5), colour=number // 2)
    by_rule(world)
    dataset = freeze(world.db, USER, "first", heldout_percent=30)
    of_pairs, of_samples = dataset_rows(world.db, dataset.id), dataset_rows(world.db, dataset.id, kind="sample")
    splits: dict[str, set[str]] = {}
    for row in (*of_pairs, *of_samples):
        for image in row.row["images"]:
            splits.setdefault(image, set()).add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    assert [row.position for row in (*of_pairs, *of_samples)] == list(range(16 + 24))
    held = [row for row in of_samples if row.split == "heldout"]
    assert 0.2 * 24 <= len(held) <= 0.5 * 24
    assert {row.sample_id for row in held} >= {row.sample_id for row in of_pairs if row.split == "heldout"}


# --- how it reads ---


def test_it_asks_no_query_a_sample(world: World) -> None:
    def queries(name: str) -> int:
        asked: list[str] = []
        world.db.conn.set_trace_callback(lambda sql: asked.append(sql) if sql.startswith("SELECT") else None)
        freeze(world.db, USER, name, heldout_percent=0)
        contents(world.db)
        world.db.conn.set_trace_callback(None)
        return len(asked)

    scored(world, 1)
    by_rule(world)
    few = queries("few")
    for number in range(2, 40):
        scored(world, number)
    by_rule(world)
    assert queries("many") == few


def test_nobody_waits_while_it_reads_and_it_sees_one_moment(world: World) -> None:
    scored(world, 1)
    other = connect(world.folder, 0.1)
    with snapshot(world.db):
        before = contents(world.db)
        other.conn.execute("UPDATE samples SET reference = NULL")
        assert contents(world.db) == before
    assert contents(world.db).references == before.references - 1
    other.close()


def test_what_was_deleted_meanwhile_is_told(world: World) -> None:
    row = {"sample_id": 99, "messages": [], "images": ["sample:99"], "reference": None, "rater": None}
    pair_row = {"sample_id": 99, "pair_id": None, "messages": [], "images": ["sample:99"]}
    with pytest.raises(Conflict, match=r"cannot be stored: .*deleted; freeze again"):
        freeze_pairs(
            world.db,
            USER,
            "first",
            [{**pair_row, "chosen": "a", "rejected": "b"}],
            [{**row, "answers": []}],
            {},
            heldout_percent=0,
        )
    assert not world.db.execute("SELECT 1 FROM datasets").fetchall()


def test_a_discarded_sample_is_in_no_data_set(world: World) -> None:
    samples = [world.sample(number) for number in range(1, 6)]
    for sample in samples:
        better, worse = world.judged(sample, [12, 1])
        pairs.choose_by_hand(world.db, USER, better.id, worse.id)
    discard(world.db, USER, samples[2])
    left = contents(world.db)
    assert (left.pairs, left.samples) == (4, 4)
    dataset = freeze(world.db, USER, "kept", heldout_percent=25)
    for kind in ("pair", "sample"):
        rows = dataset_rows(world.db, dataset.id, kind=kind)
        assert {row.sample_id for row in rows} == {*samples} - {samples[2]}
    for sample in samples:
        discard(world.db, USER, sample)
    with pytest.raises(UserError, match="would be empty"):
        freeze(world.db, USER, "nothing")
