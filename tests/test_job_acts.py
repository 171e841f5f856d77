"""What a person does to jobs and to the queue on the Jobs page, what is asked before, what is told."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from typing import Any, cast

import gradio as gr
import pytest

from factories import USER, World
from job_pages import advance
from jobs import steering
from jobs.disk import run_sizes
from jobs.runs import RunFolder
from storage import jobs as store
from storage.errors import PlumbError, UserError
from storage.lifecycle import JobStatus
from storage.records import Job
from workbench import job_acts
from workbench.context import Context
from workbench.job_acts import before, before_delete, before_stop
from workbench.job_downloads import zipped
from workbench.job_look import Look, changed, look, read_notes, search_log
from workbench.job_panels import Opened, Queue, Undo
from workbench.job_words import state_words
from workbench.pages import jobs as jobs_page
from workbench.progress import MOST_JOBS, Notes, ProgressClock, Told, Watch

pytestmark = pytest.mark.usefixtures("no_supervisor")


@pytest.fixture
def three(world: World) -> list[Job]:
    return [world.job(), world.job("dpo", dataset="first"), world.job()]


def order(world: World) -> list[int]:
    return [job.id for job in store.queued_jobs(world.db)]


def end(world: World, job: Job, status: JobStatus = JobStatus.DONE) -> Job:
    RunFolder(world.folder.run(job.id)).path.mkdir(parents=True, exist_ok=True)
    (world.folder.run(job.id) / "job.json").write_text("{}")
    return advance(world, job, JobStatus.STARTING, JobStatus.RUNNING, status)


def test_a_queued_job_is_moved_or_it_is_told_why_not(world: World, context: Context, three: list[Job]) -> None:
    first, second, third = (job.id for job in three)
    assert job_acts.move(context, third, to="first") == ""
    assert order(world) == [third, first, second]
    assert job_acts.move(context, third, to="down") == ""
    assert order(world) == [first, third, second]
    assert "is the first already" in job_acts.move(context, first, to="up")
    assert job_acts.move(context, None, to="up") == job_acts.NO_JOB
    assert job_acts.prioritise(context, second, 1) == ""
    assert order(world) == [second, first, third]
    found = look(context, Watch(), second)
    assert (found.queued, found.waiting, found.priority) == (True, True, 1)


def test_a_job_waits_for_another_and_for_none_again(world: World, context: Context, three: list[Job]) -> None:
    first, second, third = three
    assert job_acts.follow(context, third.id, first.id) == ""
    found = look(context, Watch(), third.id)
    assert found.follows[0] == first.id
    assert [number for _, number in found.follows[1]] == [0, first.id, second.id]
    assert found.follows[1][2][0].startswith(f"#{second.id} DPO (queued): demo on first")
    assert f"after job {first.id}" in found.head
    assert f"after job {first.id}" in found.jobs
    assert "for each other" in job_acts.follow(context, first.id, third.id)
    end(world, first)
    assert look(context, Watch(), third.id).follows[0] == first.id, "done, and still named"
    assert job_acts.follow(context, third.id, 0) == ""
    assert look(context, Watch(), third.id).follows[0] == 0


def test_the_queue_is_held_and_released_by_one_button(world: World, context: Context, three: list[Job]) -> None:
    assert "3 in the queue" in look(context, Watch(), None).queue
    job_acts.hold(context, USER, True)
    found = look(context, Watch(), three[0].id)
    assert found.held
    assert "held</b> by ada" in found.queue
    assert "number 1 in the queue: held" in found.jobs
    assert "the queue is held by ada" in found.head
    job_acts.hold(context, "bob", True)
    assert "held</b> by ada" in look(context, Watch(), None).queue, "pressed by two, it is held once"
    job_acts.hold(context, "bob", False)
    assert not look(context, Watch(), None).held
    assert steering.held_by(world.db) is None


def test_a_disk_without_room_is_told_above_the_list(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.job_look.has_room", lambda db, settings: "The disk has <1 MB> free.")
    assert look(context, Watch(), None).queue == "", "nobody waits for it"
    world.job()
    found = look(context, Watch(), None).queue
    assert "<b>Nothing new starts.</b> The disk has &lt;1 MB&gt; free." in found


def test_retries_are_a_whole_number_and_stand_there_where_they_count(world: World, context: Context) -> None:
    job = world.job("dpo")
    assert look(context, Watch(), job.id).retries == 4
    assert job_acts.set_retries(context, job.id, 2.0) == ""
    assert store.get_job(world.db, job.id).retries == 2
    assert "2.5" in job_acts.set_retries(context, job.id, 2.5)
    assert "None" in job_acts.set_retries(context, job.id, None)
    assert job_acts.set_retries(context, job.id, -1) != ""
    assert look(context, Watch(), world.job("merge").id).retries is None
    end(world, job)
    assert look(context, Watch(), job.id).retries is None
    assert job_acts.set_retries(context, job.id, 2) == "", "nothing to change: a field that was left, no more"


def test_run_again_is_a_new_job_with_the_same_settings(world: World, context: Context) -> None:
    world.sample(1)
    old = end(world, world.job(candidates=3, temperature=0.5))
    assert look(context, Watch(), old.id).repeatable
    new = job_acts.run_again(context, old.id, "bob")
    assert (new.config["candidates"], new.config["temperature"], new.user) == (3, 0.5, "bob")
    assert new.status is JobStatus.QUEUED
    assert not look(context, Watch(), new.id).repeatable
    with pytest.raises(UserError, match="Choose a job"):
        job_acts.run_again(context, None, "bob")
    with pytest.raises(PlumbError, match="no job 99"):
        job_acts.run_again(context, 99, "bob")


def test_a_run_is_deleted_and_restored(world: World, context: Context) -> None:
    job = end(world, world.job())
    assert look(context, Watch(), job.id).deletable
    assert job_acts.delete(context, job.id, "bob") == ""
    found = look(context, Watch(), job.id)
    assert (found.deletable, found.restorable) == (False, True)
    assert "Deleted by bob" in found.head
    assert "1 deleted run" in found.bin, "also where no other job is left"
    world.job()
    assert "1 deleted run" in look(context, Watch(), None).bin
    assert "Go on" not in found.head
    assert not found.resumable
    assert job_acts.restore(context, job.id) == ""
    found = look(context, Watch(), job.id)
    assert (found.deletable, found.restorable) == (True, False)
    assert found.bin == ""


def test_the_bin_is_drawn_anew_only_where_it_changes(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fold under the eyes of whoever reads it: at each tick, and at each minute."""
    first, other = end(world, world.job()), world.job()
    job_acts.delete(context, first.id, "bob")
    before = look(context, Watch(), None)
    advance(world, other, JobStatus.STARTING, JobStatus.RUNNING)

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Later:
            return cls(2030, 1, 1, tzinfo=tz)

    monkeypatch.setattr("workbench.job_look.datetime", Later)
    after = look(context, Watch(), other.id)
    assert before.jobs != after.jobs
    assert before.bin == after.bin
    assert store.get_job(world.db, first.id).deleted_at[:16].replace("T", " ") in after.bin  # type: ignore[index]
    assert '<details class="plumb-bin" open>' in look(context, Watch(), first.id).bin


def handler(page: gr.Blocks, name: str) -> Callable[..., dict[Any, Any]]:
    """What the page does when this component is used."""
    by_id = {component.elem_id: number for number, component in page.blocks.items() if component.elem_id}
    found = [one.fn for one in page.fns.values() if by_id[name] in {target for target, _ in one.targets}]
    return cast(Callable[..., dict[Any, Any]], found[0])


@pytest.mark.parametrize(
    ("name", "typed", "kept", "words"), [("job-retries", -3, 4, "retries = -3"), ("job-after", 99, 0, "no job 99")]
)
def test_what_was_refused_shows_again_what_holds(
    world: World, context: Context, name: str, typed: int, kept: int, words: str
) -> None:
    job = world.job("dpo", dataset="first")
    page = jobs_page.build(context)
    seen = changed(look(context, Watch(), job.id), {})[1]
    done = handler(page, name)(job.id, seen, 40, None, None, typed)
    told = {component.elem_id: value for component, value in done.items() if component.elem_id}
    assert told[name]["value"] == kept
    assert words in told["job-problem"]
    done = handler(page, name)(job.id, seen, 40, None, None, kept)
    assert name not in {component.elem_id for component in done}, "nothing was refused, and nothing is sent"


def test_the_download_is_as_large_as_what_is_in_it(world: World, context: Context) -> None:
    """Images and adapters lie in the run folder by hard links: deleting it frees nothing of them."""
    job = end(world, world.job())
    run = RunFolder(world.folder.run(job.id))
    image = world.folder.images / "ab.png"
    image.write_bytes(bytes(3_000_000))
    run.images.mkdir(parents=True)
    os.link(image, run.images / "ab.png")
    (run.path / "link").symlink_to(image)
    found = look(context, Watch(), job.id)
    assert "Download the run folder</a> (3.0 MB)" in found.downloads
    assert "3.0 MB" not in found.head
    sent = zipfile.ZipFile(io.BytesIO(b"".join(zipped(run.path, "job")))).infolist()
    assert sum(one.file_size for one in sent) == run_sizes(run).whole


def test_the_log_of_a_deleted_run_is_searched_where_it_lies(world: World, context: Context) -> None:
    job = end(world, world.job())
    RunFolder(world.folder.run(job.id)).log.write_text("one\nCUDA out of memory\n")
    for _ in range(2):
        (match,) = search_log(context, job.id, "out of memory", None).matches
        assert match.line == 2
        job_acts.delete(context, job.id, USER)


def test_a_job_at_work_is_not_deleted(world: World, context: Context) -> None:
    job = advance(world, world.job(), JobStatus.STARTING, JobStatus.RUNNING)
    with pytest.raises(PlumbError, match="stop it before"):
        before_delete(job, 1, 7)
    assert not look(context, Watch(), job.id).deletable
    assert job_acts.delete(context, job.id, USER) != ""
    assert store.get_job(world.db, job.id).deleted_at is None


@pytest.mark.parametrize(
    ("kind", "config", "text"),
    [
        ("dpo", {}, "saves a checkpoint first, and can go on from there later"),
        ("dpo", {"only_trial": True}, "leaves nothing"),
        ("dpo", {"keep_checkpoints": 0}, "begins anew"),
        ("generate", {}, "is kept, and it can go on later"),
        ("judge", {"judge": "gemini"}, "Replies on their way are waited for"),
        ("merge", {}, "a new start begins anew"),
        ("serve", {}, "its device is free"),
    ],
)
def test_before_a_stop_it_is_said_what_will_happen(
    world: World, kind: str, config: dict[str, object], text: str
) -> None:
    job = world.job(kind, **config)
    assert "It has not started" in before_stop(job)
    assert text in before_stop(advance(world, job, JobStatus.STARTING, JobStatus.RUNNING))


def test_before_a_delete_it_is_said_how_much_and_for_how_long(world: World, context: Context) -> None:
    job = end(world, world.job())
    assert "(0.4 GB: log" in before_delete(job, 412_345_678, 7)
    assert "restored for 1 day." in before_delete(job, 5, 1)
    assert re.search(r"\([\d.]+ (KB|bytes): log", before(context, job.id, "delete"))
    assert "sweep" in before(context, job.id, "stop_sweep")


def test_states_are_told_apart(world: World) -> None:
    job = world.job("dpo")
    assert state_words(job, 3, "after job 2") == "number 3 in the queue: after job 2"
    job = advance(world, job, JobStatus.STARTING)
    assert state_words(job, 0) == "the worker is starting"
    job = advance(world, job, JobStatus.RUNNING)
    assert state_words(job, 0) == "the worker has started"
    store.set_progress(world.db, job.id, phase="loading the model")
    assert state_words(store.get_job(world.db, job.id), 0) == "loading the model"
    paused = advance(world, job, JobStatus.PAUSED)
    assert state_words(paused, 0) == "paused: the disk is full; it goes on by itself when there is room"


def test_a_paused_job_can_be_queued_at_once_stopped_and_put_after_another(world: World, context: Context) -> None:
    job = end(world, world.job("dpo"), JobStatus.PAUSED)
    found = look(context, Watch(), job.id)
    assert (found.resumable, found.stoppable, found.waiting, found.queued) == (True, True, True, False)
    assert job_acts.resume(context, job.id) == ""
    assert store.get_job(world.db, job.id).status is JobStatus.QUEUED


def test_what_a_run_takes_stands_there(world: World, context: Context) -> None:
    job = end(world, world.job())
    assert re.search(r"\d (KB|bytes) on disk", look(context, Watch(), job.id).head)


def test_what_the_page_remembers_is_bounded(world: World) -> None:
    """An app that runs for months sees jobs that nobody looks at again."""
    clock, notes = ProgressClock(), Notes(most=3)
    job = advance(world, world.job("dpo"), JobStatus.STARTING, JobStatus.RUNNING)
    store.set_progress(world.db, job.id, done=1.0, total=9.0)
    job = store.get_job(world.db, job.id)
    for number in range(3 * MOST_JOBS):
        phase = "paused" if number % 2 else "training"
        clock.left(replace(job, id=number, phase=phase), datetime.now(UTC))
        notes.get(number, lambda known: Told(("x",), 1))
    assert len(clock._marks) == len(clock._waited) == MOST_JOBS
    assert len(notes._kept) == 3


def test_notes_are_read_on_and_anew_where_the_file_is_another(world: World) -> None:
    run = RunFolder(world.folder.run(1))
    run.path.mkdir(parents=True)
    run.events.write_text('{"kind": "note", "text": "one"}\n' + "x" * 500 + "\n")
    told = read_notes(run, Told())
    assert told == Told(("one",), run.events.stat().st_size)
    assert read_notes(run, told) == told
    run.events.write_text('{"kind": "note", "text": "two"}\n')
    assert read_notes(run, told).notes == ("two",)


def test_each_part_of_a_look_has_its_component() -> None:
    with gr.Blocks():
        opened, queue, undo = Opened(), Queue(), Undo()
    found = Look(jobs="x", waiting=True, retries=3, follows=(0, (("none", 0),)))
    news = {name: getattr(found, name) for name in Look.__dataclass_fields__}
    updates = opened.updates(news, found, None)
    assert set(updates) == set(opened.outputs)
    assert set(queue.updates(news)) == set(queue.outputs)
    assert set(undo.show(3)) == set(undo.outputs)
    assert opened.updates({}, found, None) == {}
    asks = opened.ask("Stop it?", "stop")
    assert asks[opened.confirm_row]["visible"]
    assert (asks[opened.confirm_stop]["visible"], asks[opened.confirm_delete]["visible"]) == (True, False)
    assert not opened.ask("", "")[opened.confirm_row]["visible"]
