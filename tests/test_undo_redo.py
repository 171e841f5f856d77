"""Undo and redo over many steps: back to the same database, and forth again; never over somebody else's work."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import USER, World, open_world
from people_at_work import KINDS, Dump, bench, dump, people
from storage import bulk, discarding, history, pairs, remarks, scored
from storage.database import connect, immediate
from storage.errors import Conflict, NotFound
from storage.own_answers import edit_answer, write_answer
from storage.records import METRICS
from storage.rows import count, rows
from storage.scores import get_judgements, set_score
from storage.suggestions import accept_suggestion

BOB = "bob"


def all_back(world: World, user: str) -> tuple[int, list[str]]:
    """Undo until nothing is left; how many were undone, and why others were refused."""
    undone = 0
    reasons: list[str] = []
    while True:
        try:
            history.undo(world.db, user)
            undone += 1
        except NotFound:
            return undone, reasons
        except Conflict as error:
            reasons.append(str(error))


def all_forth(world: World, user: str) -> int:
    redone = 0
    while history.next_redo(world.db, user) is not None:
        history.redo(world.db, user)
        redone += 1
    with pytest.raises(NotFound, match="nothing to redo"):
        history.redo(world.db, user)
    return redone


def restart(world: World) -> World:
    """The same database through another connection."""
    world.db.close()
    return World(connect(world.folder), world.folder, world.settings)


@pytest.mark.parametrize("seed", range(4))
def test_two_hundred_acts_beside_somebody_else_go_back_and_forth(tmp_path: Path, seed: int) -> None:
    world = open_world(tmp_path)
    people(world, USER, BOB)
    at_work = bench(world, seed)
    mine, theirs = at_work.samples[:3], at_work.samples[3:]
    expected = set(dump(world.db))  # what there will be without my acts
    before = frozenset(expected)
    for _ in range(200):
        if at_work.random.random() < 0.5:
            at_work.act(USER, mine)
            continue
        before = dump(world.db)
        at_work.act(BOB, theirs)
        after = dump(world.db)
        expected = (expected - (before - after)) | (after - before)
    done = dump(world.db)
    world = restart(world)
    undone, reasons = all_back(world, USER)
    assert (reasons, undone > 40) == ([], True)
    assert dump(world.db) == expected
    world = restart(world)
    assert all_forth(world, USER) == undone
    assert dump(world.db) == done
    world.db.close()


@pytest.mark.parametrize("seed", range(4))
def test_two_hundred_acts_of_two_people_on_the_same_samples(tmp_path: Path, seed: int) -> None:
    world = open_world(tmp_path)
    people(world, USER, BOB)
    at_work = bench(world, 100 + seed, samples=3)
    for _ in range(200):
        at_work.act(at_work.random.choice([USER, BOB]))
    done = dump(world.db)
    kept = others(done, world)
    undone, reasons = all_back(world, USER)
    assert undone > 20
    assert all("since" in reason or "built on it" in reason for reason in reasons), reasons
    assert others(dump(world.db), world) == kept, "what bob gave is as it was"
    assert all_forth(world, USER) == undone
    assert dump(world.db) == done
    undone, _ = all_back(world, BOB)
    assert all_forth(world, BOB) == undone
    assert dump(world.db) == done
    world.db.close()


def others(found: Dump, world: World) -> Dump:
    """Bob's own rows: his scores, flags, notes, skips, answers."""
    mine = {
        row["id"]
        for row in rows(
            world.db, "SELECT j.id FROM judgements j JOIN raters r ON r.id = j.rater_id WHERE r.name = ?", [BOB]
        )
    }
    heads = tuple(f"{{'judgement_id': {number}," for number in mine)
    return frozenset(
        (table, row)
        for table, row in found
        if (table in ("flags", "notes", "skips", "candidates") and f"'{BOB}'" in row)
        or (table == "scores" and row.startswith(heads))
    )


def test_every_kind_of_act_is_tried(world: World) -> None:
    people(world, USER)
    at_work = bench(world, 1)
    for _ in range(400):
        at_work.act(USER)
    assert set(at_work.done) == set(KINDS)
    assert len(KINDS) == 15
    assert at_work.refused < 200


def test_a_new_act_drops_what_could_be_redone(world: World) -> None:
    sample = world.sample()
    for text in ("1", "2"):
        remarks.set_note(world.db, USER, sample, text)
    history.undo(world.db, USER)
    assert history.next_redo(world.db, USER) is not None
    remarks.set_note(world.db, USER, sample, "3")
    with pytest.raises(NotFound, match="nothing to redo"):
        history.redo(world.db, USER)
    history.undo(world.db, USER)
    assert [note.text for note in remarks.notes_of(world.db, sample)] == ["1"]
    history.redo(world.db, USER)  # the third, not the second, which was undone before it
    assert [note.text for note in remarks.notes_of(world.db, sample)] == ["3"]
    with pytest.raises(NotFound):
        history.redo(world.db, USER)


def test_redo_is_ones_own_and_survives_others_acts(world: World) -> None:
    sample = world.sample()
    remarks.set_flag(world.db, USER, sample, True)
    history.undo(world.db, USER)
    remarks.set_flag(world.db, BOB, sample, True)
    with pytest.raises(NotFound):
        history.redo(world.db, BOB)
    history.redo(world.db, USER)
    assert set(remarks.flags_of(world.db, [sample])[sample]) == {USER, BOB}


def test_what_versions_without_redo_undid_does_not_come_back(world: World) -> None:
    sample = world.sample()
    remarks.set_flag(world.db, USER, sample, True)
    history.undo(world.db, USER)
    remarks.set_skip(world.db, USER, sample, True)
    world.db.conn.execute(
        "UPDATE actions SET refused_at = NULL, undone_at = '2025-01-01' WHERE undone_at IS NOT NULL"
    )
    history.undo(world.db, USER)
    assert history.redo(world.db, USER).label == f"sample {sample} skipped"


def test_a_redo_over_somebody_elses_act_is_refused_by_name(world: World) -> None:
    sample = world.sample()
    discarding.discard(world.db, USER, sample)
    history.undo(world.db, USER)
    discarding.discard(world.db, BOB, sample)
    before = dump(world.db)
    with pytest.raises(Conflict, match=r"cannot be redone: the discarding of the sample .* since by bob"):
        history.redo(world.db, USER)
    assert dump(world.db) == before
    with pytest.raises(NotFound):
        history.redo(world.db, USER)


def test_an_undo_over_somebody_elses_act_is_refused_by_name(world: World) -> None:
    sample = world.sample()
    one, two = (candidate.id for candidate in world.candidates(sample, ["a", "b"]))
    pair = pairs.choose_by_hand(world.db, USER, one, two)
    pairs.set_status(world.db, BOB, [pair.id], "rejected")
    with pytest.raises(Conflict, match=r"the pair has been changed since by bob .“pair 1 rejected”"):
        history.undo(world.db, USER)


def test_a_bulk_act_of_which_one_row_was_changed_is_refused_whole(world: World) -> None:
    samples = [world.sample(number) for number in range(1, 6)]
    assert bulk.bulk_discard(world.db, USER, samples) == 5
    discarding.keep(world.db, BOB, samples[2])
    with pytest.raises(Conflict, match=r"5 samples discarded.* since by bob"):
        history.undo(world.db, USER)
    assert count(world.db, "SELECT count(*) FROM discards") == 4


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("built", ["scored", "cleared", "paired", "answered", "noted", "judged"])
def test_an_answer_that_others_built_on_is_not_taken_back(world: World, built: str, edited: bool) -> None:
    sample = world.sample()
    other = world.candidates(sample, ["a circle"])[0].id
    answer = write_answer(world.db, USER, sample, "a red circle", other)
    if edited:
        edit_answer(world.db, USER, answer.id, "one red circle")
    if built in ("scored", "cleared"):
        set_score(world.db, BOB, answer.id, "correctness", 3)
        if built == "cleared":
            set_score(world.db, BOB, answer.id, "correctness", None)
    elif built == "paired":
        pairs.choose_by_hand(world.db, BOB, answer.id, other)
    elif built == "answered":
        write_answer(world.db, BOB, sample, "one round red circle", answer.id)
    elif built == "noted":
        remarks.set_note(world.db, BOB, sample, "the one with `round` is best")
    else:
        world.db.conn.execute("INSERT INTO raters (kind, name) VALUES ('judge', 'bob, a judge')")
        world.db.conn.execute(
            "INSERT INTO judgements (rater_id, sample_id, state, created_at)"
            f" SELECT max(id), {sample}, 'ok', 'now' FROM raters"
        )
        world.db.conn.execute(
            "INSERT INTO scores (judgement_id, candidate_id, coherence)"
            f" SELECT max(id), {answer.id}, 1 FROM judgements"
        )
    before = dump(world.db)
    with pytest.raises(Conflict, match=r"cannot be undone: bob.* has .* the answer since"):
        history.undo(world.db, USER)
    assert dump(world.db) == before


def test_an_edit_is_not_redone_under_somebodys_score(world: World) -> None:
    sample = world.sample()
    answer = write_answer(world.db, USER, sample, "a circle")
    edit_answer(world.db, USER, answer.id, "a square")
    history.undo(world.db, USER)
    set_score(world.db, BOB, answer.id, "correctness", 4)
    with pytest.raises(Conflict, match="bob has scored the answer since"):
        history.redo(world.db, USER)


def test_ones_own_note_and_a_note_from_before_hold_no_answer(world: World) -> None:
    sample = world.sample()
    remarks.set_note(world.db, BOB, sample, "hard")
    write_answer(world.db, USER, sample, "a circle")
    history.undo(world.db, USER)
    history.redo(world.db, USER)
    remarks.set_note(world.db, BOB, sample, "harder")
    history.undo(world.db, BOB)  # what was undone is no hold
    history.undo(world.db, USER)
    assert count(world.db, "SELECT count(*) FROM candidates") == 0


def test_a_first_score_is_not_undone_under_later_ones(world: World) -> None:
    """The judgement that came with it would take the others along."""
    one, two = (candidate.id for candidate in world.candidates(world.sample(), ["a", "b"]))
    set_score(world.db, USER, one, "correctness", 3)
    set_score(world.db, USER, two, "correctness", 1)
    world.db.conn.execute("UPDATE actions SET refused_at = 'x' WHERE id = 2")
    before = dump(world.db)
    with pytest.raises(Conflict, match="other scores belong to the same scoring"):
        history.undo(world.db, USER)
    assert dump(world.db) == before


def test_a_refusal_within_a_transaction_is_remembered_and_nothing_else(world: World) -> None:
    sample = world.sample()
    remarks.set_flag(world.db, USER, sample, True)
    bulk.bulk_discard(world.db, USER, [sample])
    discarding.keep(world.db, BOB, sample)
    with immediate(world.db), pytest.raises(history.Refused):
        history.undo(world.db, USER)
    assert history.undo(world.db, USER).label == f"sample {sample} flagged"


def test_ids_come_back_as_they_were(world: World) -> None:
    sample = world.sample()
    first = write_answer(world.db, USER, sample, "a")
    history.undo(world.db, USER)
    other = write_answer(world.db, BOB, sample, "b")
    assert other.id > first.id
    history.redo(world.db, USER)
    assert count(world.db, "SELECT id FROM candidates WHERE text = 'a'") == first.id


def test_many_rows_go_in_and_out_at_once(world: World) -> None:
    """Over several runs, with a last one that isn't full."""
    world.db.conn.executemany(
        "INSERT INTO samples (source, source_id, messages, question, created_at) VALUES ('x', ?, '[]', '', '')",
        [[str(number)] for number in range(12_345)],
    )
    ids = [row["id"] for row in rows(world.db, "SELECT id FROM samples")]
    assert bulk.bulk_flag(world.db, USER, [*ids, 10**9, ids[0]]) == len(ids)
    assert bulk.bulk_flag(world.db, USER, ids[:100], on=False) == 100
    assert bulk.bulk_flag(world.db, USER, ids[:100], on=False) == 0
    flagged = dump(world.db)
    history.undo(world.db, USER)
    history.undo(world.db, USER)
    assert count(world.db, "SELECT count(*) FROM flags") == 0
    history.redo(world.db, USER)
    assert count(world.db, "SELECT count(*) FROM flags") == len(ids)
    history.redo(world.db, USER)
    assert dump(world.db) == flagged


def test_rows_of_tables_with_ids_go_in_many_at_once(world: World) -> None:
    sample = world.sample()
    ids = [candidate.id for candidate in world.candidates(sample, ["a", "b", "c"])]
    kept = pairs.choose_by_hand(world.db, USER, ids[0], ids[1])
    history.undo(world.db, USER)
    values = {"sample_id": sample, "origin": "rule", "status": "proposed", "user": USER, "created_at": "now"}
    with history.action(world.db, USER, "two pairs") as change:
        made = change.insert_many(
            "pairs",
            [
                {**values, "chosen_id": ids[0], "rejected_id": ids[1], "chosen_quality": 0.1},
                {**values, "chosen_id": ids[0], "rejected_id": ids[2], "chosen_quality": 1 / 3},
            ],
        )
    assert made == [kept.id + 1, kept.id + 2], "an id that was given is not given again"
    assert pairs.choose_by_hand(world.db, BOB, ids[1], ids[2]).id == kept.id + 3
    before = dump(world.db)
    history.undo(world.db, USER)
    history.redo(world.db, USER)
    assert dump(world.db) == before


def test_a_samples_history_tells_who_did_what(world: World) -> None:
    sample, other = world.sample(1), world.sample(2)
    candidate = world.judged(sample, [9, 2])[0].id
    set_score(world.db, USER, candidate, "correctness", 3)
    bulk.bulk_flag(world.db, BOB, [sample, other])
    history.undo(world.db, BOB)
    remarks.set_note(world.db, USER, other, "elsewhere")
    told = [(act.user, act.label, act.undone) for act in history.sample_history(world.db, sample)]
    assert sorted(told) == sorted(
        [
            (BOB, "2 samples flagged", True),
            (USER, f"correctness 3 for candidate {candidate}", False),
            ("test-judge", "scores of 2 answers", False),
            ("demo", "wrote 2 answers", False),
        ]
    )
    assert len(history.sample_history(world.db, sample, limit=2)) == 2
    assert [act.at for act in history.sample_history(world.db, sample)] == sorted(
        (act.at for act in history.sample_history(world.db, sample)), reverse=True
    )


def test_the_stamp_changes_with_whatever_is_changed(world: World) -> None:
    people(world, USER, BOB)
    at_work = bench(world, 7, samples=2)
    sample, other = at_work.samples
    stamps = {history.stamp(world.db, sample): dump(world.db)}
    for _ in range(60):
        at_work.act(at_work.random.choice([USER, BOB]), [sample])
        stamps.setdefault(history.stamp(world.db, sample), dump(world.db))
        assert stamps[history.stamp(world.db, sample)] == dump(world.db), "another state, another stamp"
    last = history.stamp(world.db, sample)
    at_work.act(USER, [other])
    remarks.set_flag(world.db, USER, other, True)
    assert history.stamp(world.db, sample) == last
    world.judged(sample, [1])
    assert history.stamp(world.db, sample) != last
    assert history.changed_by(world.db, sample, last) == ["test-judge"]
    undone = history.stamp(world.db, sample)
    history.undo(world.db, BOB)
    assert history.stamp(world.db, sample) != undone
    assert history.changed_by(world.db, sample, undone) == [BOB]
    assert history.changed_by(world.db, sample, undone, but=BOB) == []
    for nonsense in ("", "x", "1.2", "a.b.c", f"{10**30}.0.x", "-1.0.x"):
        assert history.changed_by(world.db, sample, nonsense) == []


def test_suggestions_fill_what_is_missing_and_go_back_at_once(world: World) -> None:
    sample = world.sample()
    one, two = (candidate.id for candidate in world.judged(sample, [9, 2]))
    set_score(world.db, USER, one, "helpfulness", 0)
    judge = next(j for j in get_judgements(world.db, [sample])[sample] if j.rater.kind == "judge")
    before = dump(world.db)
    own = accept_suggestion(world.db, USER, judge.id)
    told = {score.candidate_id: {metric: score.value(metric) for metric in METRICS} for score in own.scores}
    judged = {score.candidate_id: {metric: score.value(metric) for metric in METRICS} for score in judge.scores}
    assert told == {one: {**judged[one], "helpfulness": 0}, two: judged[two]}
    with pytest.raises(Conflict, match="scored all of this yourself"):
        accept_suggestion(world.db, USER, judge.id)
    after = dump(world.db)
    history.undo(world.db, USER)
    assert dump(world.db) == before
    history.redo(world.db, USER)
    assert dump(world.db) == after


def test_a_discarded_sample_gives_no_pairs_and_no_rows(world: World) -> None:
    samples = [world.sample(number) for number in (1, 2)]
    for sample in samples:
        world.judged(sample, [9, 2])
    discarding.discard(world.db, USER, samples[0])
    assert discarding.discard(world.db, BOB, samples[0]) is False
    assert discarding.discarded_among(world.db, [*samples, 99]) == {samples[0]}
    told = discarding.discarded(world.db, samples[0])
    assert told is not None
    assert told.user == USER
    for walk in (scored.walk_scored, scored.walk_judged, scored.walk_counted):
        assert [row[0] for row in walk(world.db)] == samples[1:]
    history.undo(world.db, USER)
    assert [row[0] for row in scored.walk_scored(world.db, batch=1)] == samples


def test_a_row_that_one_act_changed_twice_goes_back_and_forth(world: World) -> None:
    sample = world.sample()
    one, two = (candidate.id for candidate in world.candidates(sample, ["a", "b"]))
    pair = pairs.choose_by_hand(world.db, USER, one, two)
    before = dump(world.db)
    with history.action(world.db, USER, "to and fro", sample) as change:
        for status in ("rejected", "proposed"):
            change.update("pairs", {"id": pair.id}, {"status": status})
        change.delete("pairs", {"id": pair.id})
    after = dump(world.db)
    for _ in range(2):
        history.undo(world.db, USER)
        assert dump(world.db) == before
        history.redo(world.db, USER)
        assert dump(world.db) == after


def test_each_change_knows_its_sample_and_spells_its_key_one_way(world: World) -> None:
    people(world, USER)
    at_work = bench(world, 3)
    for _ in range(150):
        at_work.act(USER)
    ((one, sample),) = world.db.conn.execute("SELECT min(id), sample_id FROM candidates").fetchall()
    set_score(world.db, USER, one, "correctness", 4)
    judgement = next(j.id for j in get_judgements(world.db, [sample])[sample] if j.rater.name == USER)
    with history.action(world.db, USER, "the other way round") as change:
        change.update("scores", {"candidate_id": one, "judgement_id": judgement}, {"verbosity": 1})
    assert count(world.db, "SELECT count(*) FROM changes WHERE sample_id IS NULL") == 0
    spelled = f'{{"judgement_id": {judgement}, "candidate_id": {one}}}'
    assert count(world.db, "SELECT count(*) FROM changes WHERE row_key = ?", [spelled]) >= 2
    wrong = """SELECT count(*) FROM changes c JOIN candidates a ON a.id = json_extract(c.row_key, '$.candidate_id')
               WHERE c.table_name = 'scores' AND a.sample_id <> c.sample_id"""
    assert count(world.db, wrong) == 0


def test_what_stands_there_already_makes_no_act(world: World) -> None:
    sample = world.sample()
    candidate = world.candidates(sample, ["a"])[0].id
    for _ in range(2):
        set_score(world.db, USER, candidate, "correctness", 3)
        remarks.set_flag(world.db, USER, sample, True)
        remarks.set_note(world.db, USER, sample, " x ")
        bulk.bulk_skip(world.db, USER, [sample])
    assert count(world.db, "SELECT count(*) FROM actions") == 4


def test_a_flag_of_somebody_else_is_no_flag_of_mine(world: World) -> None:
    samples = [world.sample(number) for number in (1, 2, 3)]
    bulk.bulk_flag(world.db, BOB, samples[:2])
    assert bulk.bulk_flag(world.db, USER, samples) == 3
    assert bulk.bulk_flag(world.db, USER, samples, on=False) == 3
    assert [len(names) for names in remarks.flags_of(world.db, samples).values()] == [1, 1, 0]
