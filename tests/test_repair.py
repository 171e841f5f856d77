"""The check finds what is wrong, the repair puts it right and keeps whatever it takes away."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from sqlite_utils import Database
from typer.testing import CliRunner

from data_folders import begun, files, fill, run_of, tables
from factories import USER, World
from jobs import bin as trash
from storage import inspection, pairs, upkeep
from storage import jobs as store
from storage.__main__ import app
from storage.database import session
from storage.datasets import dataset_rows, get_dataset
from storage.errors import Conflict, UserError
from storage.facts import catch_up
from storage.finding import SampleFilter, find_samples
from storage.images import make_thumbnail
from storage.inspection import list_images
from storage.lifecycle import JobStatus
from storage.repair import Repaired, repair
from storage.rows import count, rows
from storage.scores import get_judgements, set_score


@pytest.fixture
def full(world: World) -> World:
    return fill(world)


def broken(world: World, *statements: str) -> None:
    """Change rows as no Plumb would: nobody looks after what names them."""
    raw = sqlite3.connect(world.folder.database, isolation_level=None)
    raw.execute("PRAGMA foreign_keys = OFF")
    for statement in statements:
        raw.execute(statement)
    raw.close()


def kinds(world: World, **options: Any) -> list[str]:
    return sorted(one.kind for one in upkeep.check(world.db, world.folder, **options))


def notes_of(done: Repaired) -> list[dict[str, Any]]:
    assert done.notes is not None
    return [json.loads(line) for line in done.notes.read_text().splitlines()]


def test_nothing_is_wrong_and_nothing_is_done(full: World) -> None:
    before, stored = tables(full), files(full.folder)
    assert upkeep.check(full.db, full.folder, hashes=True, grace=0) == []
    assert repair(full.folder, hashes=True, grace=0) == Repaired((), (), None)
    assert (tables(full), files(full.folder)) == (before, stored)
    assert not list(full.folder.runtime.glob("repaired-*"))


def test_a_check_sees_one_moment(full: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What people and jobs write meanwhile does not look as if it were half there."""
    real = inspection.broken_links

    def while_somebody_writes(db: Database) -> list[inspection.Broken]:
        found = real(db)
        with session(full.folder) as other:
            other.conn.execute("INSERT INTO images VALUES ('ab', 'png', 1, 1, 1, '')")
            other.conn.execute("DELETE FROM sample_images")
        return found

    monkeypatch.setattr(inspection, "broken_links", while_somebody_writes)
    assert kinds(full) == []
    monkeypatch.undo()
    assert kinds(full) != []


def test_runs_in_the_bin_and_beyond_are_as_they_should_be(full: World) -> None:
    binned = trash.deleted_runs(full.db)[0]
    assert kinds(full, grace=0) == []
    trash.purge(full.db, full.settings)
    assert not full.folder.binned(binned.id).exists()
    assert kinds(full, grace=0) == []


def test_nothing_is_repaired_beside_a_supervisor(full: World) -> None:
    next(full.folder.thumbnails.rglob("*.webp")).unlink()
    with FileLock(full.folder.runtime / "supervisor.lock"), pytest.raises(Conflict, match="supervisor is at work"):
        repair(full.folder)
    assert kinds(full) == ["missing file"]
    assert repair(full.folder).left == ()


# images and thumbnails ----------------------------------------------------------------------------------------


def test_thumbnails_are_made_again(full: World) -> None:
    before = files(full.folder)
    for path in full.folder.thumbnails.rglob("*.webp"):
        path.unlink()
    done = repair(full.folder)
    assert len(done.done) == len(list_images(full.db))
    assert (done.left, files(full.folder)) == ((), before)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"cut")])
def test_an_image_comes_back_from_a_run_folder_with_a_copy_of_its_own(
    full: World, damage: Callable[[Path], object]
) -> None:
    image = list_images(full.db)[0]
    path = full.folder.images / image.sha256[:2] / image.name
    data = path.read_bytes()
    copies = list(full.folder.runs.rglob(image.name))
    assert copies
    for copy in copies:  # each its own file, as on a disk without hard links
        copy.unlink()
        copy.write_bytes(data)
    damage(path)
    done = repair(full.folder)
    assert (done.left, path.read_bytes()) == ((), data)
    assert any(f"image {image.name}: put back from runs/" in line for line in done.done)


def test_a_damaged_copy_of_an_image_is_not_taken_for_it(full: World) -> None:
    image = list_images(full.db)[0]
    for copy in full.folder.runs.rglob(image.name):
        copy.unlink()
        copy.write_bytes(bytes(image.bytes))
    (full.folder.images / image.sha256[:2] / image.name).unlink()
    done = repair(full.folder)
    assert ([one.kind for one in done.left], done.done) == (["missing file"], ())


def test_an_image_of_which_there_is_no_copy_is_told_and_left(full: World) -> None:
    image = list_images(full.db)[0]
    for path in [*full.folder.runs.rglob(image.name), full.folder.images / image.sha256[:2] / image.name]:
        path.unlink()
    (full.folder.thumbnails / image.sha256[:2] / f"{image.sha256}.webp").unlink()
    done = repair(full.folder)
    assert [(one.kind, one.what) for one in done.left] == [
        ("missing file", f"image {image.name}"),
        ("missing file", f"thumbnail of {image.sha256}"),
    ]
    assert count(full.db, "SELECT count(*) FROM images WHERE sha256 = ?", [image.sha256]) == 1


def test_content_is_compared_only_when_asked_for(full: World) -> None:
    image = list_images(full.db)[0]
    path = full.folder.images / image.sha256[:2] / image.name
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    adapter = next(full.folder.adapters.rglob("adapter_config.json"))
    adapter.unlink()
    adapter.write_text("[]")
    full.db.conn.execute("UPDATE dataset_rows SET row = replace(row, 'answer 0', 'answer 7') WHERE position = 0")
    assert kinds(full) == []
    assert kinds(full, hashes=True) == ["damaged file", "damaged file", "data set"]
    done = repair(full.folder, hashes=True)
    assert [one.kind for one in done.left] == ["data set"], "the files had second names with the right content"
    assert len(list((full.folder.root / "lost+found").rglob("*.*"))) == 3, "the image, the adapter's two files"


# adapters and runs --------------------------------------------------------------------------------------------


def test_an_adapter_comes_back_from_the_run_that_made_it(full: World) -> None:
    before = files(full.folder)
    for path in full.folder.adapters.iterdir():
        shutil.rmtree(path)
    assert kinds(full) == ["missing file"]
    done = repair(full.folder)
    assert (done.left, files(full.folder)) == ((), before)


def test_an_adapter_comes_back_from_a_run_that_was_frozen_with_it(full: World) -> None:
    adapter = next(full.folder.adapters.iterdir())
    run = run_of(full, full.job("generate"))
    full.db.conn.execute("UPDATE jobs SET status = 'done'")
    shutil.copytree(adapter, run.start_adapter(adapter.name))
    for path in full.folder.runs.glob("*/adapter"):
        shutil.rmtree(path)
    shutil.rmtree(adapter)
    assert repair(full.folder).left == ()
    assert len(list(adapter.iterdir())) == 2


def test_another_adapter_in_the_run_folder_is_not_taken_for_it(full: World) -> None:
    adapter = next(full.folder.adapters.iterdir())
    shutil.rmtree(adapter)
    for path in full.folder.runs.glob("*/adapter/adapter_config.json"):
        path.unlink()
        path.write_text("changed")
    done = repair(full.folder)
    assert ([one.kind for one in done.left], done.done) == (["missing file"], ())
    assert not adapter.exists()


@pytest.mark.parametrize(
    ("status", "expected"),
    [("queued", "failed"), ("running", "failed"), ("stopping", "stopped"), ("done", "done")],
)
def test_a_job_without_its_run_folder_is_noted(full: World, status: str, expected: str) -> None:
    job = full.job("sft")
    if status in ("running", "stopping"):
        begun(full, job, JobStatus(status))
    full.db.conn.execute("UPDATE jobs SET status = ? WHERE id = ?", [status, job.id])
    assert kinds(full) == ["missing file"]
    done = repair(full.folder)
    assert done.left == ()
    found = store.get_job(full.db, job.id)
    assert (found.status, found.purged_at is not None) == (expected, True)
    assert store.open_attempts(full.db) == []


def test_nothing_is_repaired_while_the_disk_of_the_runs_is_away(full: World) -> None:
    jobs = store.list_jobs(full.db, deleted=True)
    before = tables(full)
    full.folder.runs.rename(full.folder.root / "disk")
    full.folder.runs.mkdir()
    (found,) = upkeep.check(full.db, full.folder)
    assert (
        found.what == f"runs/ is empty, though {len(jobs)} jobs have their run folders in it: is its disk mounted?"
    )
    with pytest.raises(UserError, match="is its disk mounted"):
        repair(full.folder)
    assert tables(full) == before
    (full.folder.runs / "gone").touch()
    assert len(repair(full.folder).done) >= len(jobs), "a person has said so"
    assert all(job.purged_at for job in store.list_jobs(full.db, deleted=True))


def test_a_run_folder_that_was_noted_as_gone_and_is_there(full: World) -> None:
    before = tables(full)
    full.db.conn.execute("UPDATE jobs SET purged_at = 'then' WHERE purged_at IS NULL")
    assert set(kinds(full)) == {"job"}
    done = repair(full.folder)
    assert (done.left, tables(full)) == ((), before)
    assert "it is there again" in done.done[0]


def test_what_is_left_of_a_run_folder_is_not_given_up(full: World) -> None:
    job = store.list_jobs(full.db)[0]
    (full.folder.run(job.id) / "job.json").unlink()
    done = repair(full.folder)
    assert [one.what for one in done.left] == [f"run folder of job {job.id}"]
    assert store.get_job(full.db, job.id).purged_at is None


def test_a_job_that_nobody_would_settle(full: World) -> None:
    job = full.job("sft")
    run_of(full, job)
    full.db.conn.execute("UPDATE jobs SET status = 'running', slot = 'cpu' WHERE id = ?", [job.id])
    assert kinds(full) == ["job"]
    assert repair(full.folder).left == ()
    assert store.get_job(full.db, job.id).status is JobStatus.FAILED
    begun(full, full.job("sft"))
    run_of(full, store.list_jobs(full.db)[0])
    assert kinds(full) == [], "one with an attempt is the next supervisor's"


# files that nothing names -------------------------------------------------------------------------------------


def test_files_that_nothing_names_are_moved_and_not_deleted(full: World) -> None:
    folder = full.folder
    strange = {
        folder.images / "ab" / "tmpdraft": b"half an image",
        folder.thumbnails / "ab" / "old.webp": b"old",
        folder.adapters / ("a" * 64) / "adapter_model.safetensors": b"x" * 2000,
        folder.runs / "000002.old-1f" / "job.json": b"{}",
        folder.runs / "999999" / "job.json": b"{}",
        folder.bin / "888888" / "log.txt": b"log",
    }
    for path, data in strange.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder.bin / "777777.gone").mkdir()
    before = tables(full)
    assert kinds(full) == [], "their rows may be about to be written"
    found = [one.what for one in upkeep.check(full.db, folder, grace=0)]
    assert len(found) == len(strange)
    assert f"adapters/{'a' * 64} (2.0 KB)" in found
    done = repair(folder, grace=0)
    assert (done.left, tables(full)) == ((), before)
    for path, data in strange.items():
        assert not path.exists()
        assert (folder.root / "lost+found" / path.relative_to(folder.root)).read_bytes() == data
    assert (folder.bin / "777777.gone").exists(), "the supervisor's to remove"
    assert [note["what"] for note in notes_of(done)] == ["moved"] * len(strange)


def test_two_lost_files_of_one_name_are_both_kept(full: World) -> None:
    for content in ("one", "two"):
        (full.folder.runs / "999999").mkdir()
        (full.folder.runs / "999999" / "log.txt").write_text(content)
        assert repair(full.folder, grace=0).left == ()
    found = (full.folder.root / "lost+found").rglob("log.txt")
    assert sorted(path.read_text() for path in found) == ["one", "two"]


def test_a_file_that_cannot_be_moved_is_told(full: World) -> None:
    (full.folder.runs / "999999").mkdir()
    (full.folder.root / "lost+found").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="999999 cannot be moved"):
        repair(full.folder, grace=0)
    assert (full.folder.runs / "999999").exists()


# rows ---------------------------------------------------------------------------------------------------------


def test_rows_that_name_nothing_lose_the_name_or_go_and_are_kept_on_file(full: World) -> None:
    """A job is gone with its run folder: answers stay without it, its attempts go."""
    job = count(full.db, "SELECT min(job_id) FROM candidates")
    answers = count(full.db, "SELECT count(*) FROM candidates WHERE job_id = ?", [job])
    broken(full, f"DELETE FROM jobs WHERE id = {job}")
    shutil.rmtree(full.folder.run(job))
    before = count(full.db, "SELECT count(*) FROM candidates")
    assert set(kinds(full)) == {"foreign key"}
    done = repair(full.folder)
    assert done.left == ()
    assert count(full.db, "SELECT count(*) FROM candidates") == before
    assert count(full.db, "SELECT count(*) FROM candidates WHERE job_id IS NULL") == answers
    noted = notes_of(done)
    assert {(note["table"], note["why"]) for note in noted} == {
        ("attempts", "removed: job_id names a missing row of jobs"),
        ("candidates", "emptied: job_id names a missing row of jobs"),
    }
    assert all(note["row"]["job_id"] == job for note in noted)


def test_a_job_comes_back_from_its_run_folder(full: World) -> None:
    job = store.list_jobs(full.db, kind="generate")[0]
    broken(full, f"DELETE FROM jobs WHERE id = {job.id}")
    assert repair(full.folder).left == ()
    again = store.get_job(full.db, job.id)
    assert (again.kind, again.config, again.user, again.status) == (job.kind, job.config, job.user, "failed")
    assert len(store.attempts_of(full.db, job.id)) == 1, "it kept its own"


def test_the_job_of_an_adapter_comes_back_as_done(full: World) -> None:
    job_id = count(full.db, "SELECT job_id FROM adapters")
    broken(full, f"DELETE FROM jobs WHERE id = {job_id}")
    assert repair(full.folder).left == ()
    assert store.get_job(full.db, job_id).status is JobStatus.DONE


def test_labels_outlive_the_row_of_who_gave_them(full: World) -> None:
    sample = find_samples(full.db, SampleFilter())[0]
    candidate = count(full.db, "SELECT min(id) FROM candidates WHERE sample_id = ?", [sample.id])
    set_score(full.db, "bob", candidate, "correctness", 3)
    scores = rows(full.db, "SELECT * FROM scores")
    broken(full, "DELETE FROM raters WHERE kind = 'judge'", "DELETE FROM users WHERE name = 'bob'")
    done = repair(full.folder)
    assert done.left == ()
    assert rows(full.db, "SELECT * FROM scores") == scores
    assert count(full.db, "SELECT count(*) FROM users WHERE name = 'bob'") == 1
    assert "rater 1" in {one.rater.name for one in get_judgements(full.db, [sample.id])[sample.id]}


def test_a_sample_comes_back_from_a_frozen_data_set(full: World) -> None:
    sample = find_samples(full.db, SampleFilter())[0]
    frozen = dataset_rows(full.db, get_dataset(full.db, "first").id)
    broken(full, f"DELETE FROM samples WHERE id = {sample.id}")
    assert repair(full.folder).left == ()
    again = find_samples(full.db, SampleFilter())[0]
    assert (again.id, again.messages, again.question, again.reference) == (
        sample.id,
        sample.messages,
        sample.question,
        sample.reference,
    )
    assert (again.source, again.images) == ("recovered", sample.images)
    assert dataset_rows(full.db, get_dataset(full.db, "first").id) == frozen


def test_an_image_is_noted_again_while_its_file_is_there(full: World) -> None:
    image = list_images(full.db)[0]
    broken(full, f"DELETE FROM images WHERE sha256 = '{image.sha256}'")
    assert "foreign key" in kinds(full)
    assert repair(full.folder).left == ()
    assert image in list_images(full.db)


def test_links_to_images_are_made_again(full: World) -> None:
    before = rows(full.db, "SELECT * FROM sample_images")
    broken(full, "DELETE FROM sample_images WHERE sample_id = 1")
    assert kinds(full) == ["orphan"]
    assert repair(full.folder).left == ()
    assert rows(full.db, "SELECT * FROM sample_images") == before


def test_scores_and_pairs_across_samples_go(full: World) -> None:
    frozen = count(full.db, "SELECT count(*) FROM dataset_rows")
    broken(
        full,
        "UPDATE OR IGNORE scores SET candidate_id = 3 WHERE judgement_id = 1 AND candidate_id = 1",
        "UPDATE pairs SET chosen_id = 8 WHERE id = 1",
    )
    assert kinds(full) == ["orphan", "orphan"]
    done = repair(full.folder)
    assert done.left == ()
    assert len(pairs.list_pairs(full.db)) == 3
    assert count(full.db, "SELECT count(*) FROM dataset_rows") == frozen, "what is frozen stays"
    assert {"scores", "pairs", "dataset_rows"} == {note["table"] for note in notes_of(done)}


def test_an_empty_data_set_goes_unless_a_model_came_from_it(full: World) -> None:
    columns = "id, name, hash, rule, counts, user, created_at"
    made = [
        f"INSERT INTO datasets ({columns}) VALUES ({number}, 'e{number}', '', '{{}}', '{{}}', '{USER}', '')"
        for number in (50, 51)
    ]
    broken(full, *made, "UPDATE adapters SET dataset_id = 51")
    assert kinds(full) == ["orphan"]
    done = repair(full.folder)
    assert [one.what for one in done.left] == ["1 data sets without rows"]
    assert rows(full.db, "SELECT id FROM datasets WHERE id >= 50") == [{"id": 51}]


def test_the_search_index_is_built_anew(full: World) -> None:
    catch_up(full.db)
    broken(full, "DELETE FROM words_fts_docsize WHERE id = 1")
    assert kinds(full) == ["search index"]
    assert repair(full.folder).left == ()
    assert len(find_samples(full.db, SampleFilter(q="shape"))) == 4


# the commands -------------------------------------------------------------------------------------------------


def test_the_commands(full: World) -> None:
    runner = CliRunner()

    def run(*words: str) -> Any:
        return runner.invoke(app, ["check", "--data", str(full.folder.root), *words])

    assert (run().exit_code, run().stdout) == (0, "Nothing is wrong.\n")
    image = list_images(full.db)[0]
    (full.folder.thumbnails / image.sha256[:2] / f"{image.sha256}.webp").unlink()
    found = run("--json", "--hashes")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["findings"] == [
        {"kind": "missing file", "what": f"thumbnail of {image.sha256}"}
    ]
    done = run("--repair")
    assert done.exit_code == 0
    assert done.stdout == f"thumbnail of {image.sha256}: made again\nNothing is wrong any more.\n"
    again = json.loads(run("--repair", "--json").stdout)
    assert again == {"ok": True, "findings": [], "repaired": [], "notes": None}
    make_thumbnail(full.folder, image)
