"""What a training's page shows: curves, figures at the end, answers along the run, the model's own pictures."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from factories import USER, World, png
from job_pages import advance
from jobs.freezing import freeze
from jobs.runs import RunFolder
from storage import jobs as store
from storage.checkpoints import add_checkpoint_answers
from storage.lifecycle import JobStatus
from storage.pairs import choose_by_hand
from storage.records import Job
from workbench import run_views
from workbench.context import Context
from workbench.door import Door
from workbench.images import seen_picture
from workbench.job_acts import halt_sweep
from workbench.job_history import log_view
from workbench.job_logs import Part
from workbench.job_look import NOTES, look, read_notes
from workbench.job_panels import slider
from workbench.job_words import KIND_NAMES
from workbench.progress import Told, Watch
from workbench.run_views import Checkpoints, at_the_end, checkpoint_view, marked
from workbench.ui import build_api


def running(world: World, kind: str = "dpo", **config: Any) -> Job:
    job = advance(world, world.job(kind, **{"dataset": "first", **config}), JobStatus.STARTING, JobStatus.RUNNING)
    RunFolder(world.folder.run(job.id)).path.mkdir(parents=True)
    return job


def answered(number: int, text: str, **more: Any) -> dict[str, Any]:
    return {"number": number, "prompt": f"question {number}?", "text": text, "tokens": 3, **more}


def tell(world: World, job: Job, step: int, **values: float) -> None:
    attempts = store.attempts_of(world.db, job.id)
    attempt = attempts[-1] if attempts else store.start_attempt(world.db, job.id)
    store.add_metrics(world.db, attempt.id, step, values)
    attempt = store.get_attempt(world.db, attempt.id)
    store.advance(world.db, attempt, attempt.event_offset + 100, 0.0)


def test_the_margin_with_a_blank_image_stands_beside_the_margin(world: World, context: Context) -> None:
    job = running(world)
    for step in (5, 10):
        tell(world, job, step, reward_margin=1.0, heldout_reward_margin=0.8, heldout_blank_margin=0.3)
        tell(
            world, job, step, heldout_kl=0.01, logp_chosen=-3.0, heldout_logp_chosen=-4.0, heldout_chosen_tokens=9
        )
        tell(world, job, step, pairs_per_second=2.5, tokens_per_second=300.0, memory_gb=1.2, answer_tokens=8.0)
    found = look(context, Watch(), job.id)
    figure = next(part for part in found.charts.split("<figure") if "is the image used?" in part)
    assert figure.count("<polyline") == 3
    assert "image blanked, held-out" in figure
    for words in ("nats a token", "Log-probability of the chosen answer"):
        assert words in found.charts
    for words in ("Tokens of an answer", "Pairs a second", "Tokens a second", "Memory so far"):
        assert words in found.more
        assert words not in found.charts
    assert "Money" not in found.charts + found.more
    assert ">2.5<" in found.figures


def test_figures_of_held_out_and_report_stand_apart(world: World, context: Context) -> None:
    job = running(world)
    assert look(context, Watch(), job.id).ends == ""
    tell(world, job, 5, heldout_reward_accuracy=0.75, heldout_blank_margin=0.31)
    found = look(context, Watch(), job.id).ends
    assert "So far" in found
    assert re.search(r"Accuracy</th><td>75\.0%</td><td>–</td>", found)
    tell(world, job, 5, report_reward_accuracy=0.625)
    store.move(world.db, job.id, JobStatus.DONE)
    found = look(context, Watch(), job.id).ends
    assert "At the end" in found
    assert re.search(r"Accuracy</th><td>75\.0%</td><td>62\.5%</td>", found)
    assert "nothing is chosen by them" in found


def test_a_patient_runs_figures_are_its_best_ones(world: World, context: Context) -> None:
    job = running(world, patience=2)
    for step, accuracy in ((5, 0.6), (10, 0.9), (15, 0.7)):
        tell(world, job, step, heldout_reward_accuracy=accuracy, heldout_reward_margin=1.0)
    found = look(context, Watch(), job.id).ends
    assert "90.0%" in found
    assert "70.0%" not in found
    assert "the best held-out evaluation" in found


def test_the_slider_walks_over_the_checkpoints(world: World, context: Context) -> None:
    job, sample = running(world), world.sample(1)
    add_checkpoint_answers(world.db, job.id, 0, [answered(0, "red", sample_id=sample, image="seen/0.png")])
    one = look(context, Watch(), job.id)
    assert one.checkpoints == (0,)
    assert slider(one.checkpoints, None)["visible"] is False, "one checkpoint is no choice"
    assert "Before training" in one.answers
    assert f'src="/runs/{job.id}/seen/0.png"' in one.answers
    assert "as the model sees it" in one.answers
    assert f'href="/?sample={sample}"' in one.answers
    add_checkpoint_answers(world.db, job.id, 8, [answered(0, "red <b>", sample_id=sample, image="seen/0.png")])
    add_checkpoint_answers(world.db, job.id, 15, [answered(0, "a red circle", image="seen/../../x.png")])
    found = look(context, Watch(), job.id)
    assert found.checkpoints == (0, 8, 15)
    assert "after step 15" in found.answers, "the newest, unless another is asked for"
    assert "<img" not in found.answers, "a name that is none is no picture"
    middle = look(context, Watch(), job.id, checkpoint=1).answers
    assert "after step 8" in middle
    assert "red <ins>&lt;b&gt;</ins>" in middle
    shown = slider(found.checkpoints, 1)
    assert (shown["maximum"], shown["value"], shown["visible"]) == (2, 1, True)
    assert shown["label"] == "Checkpoints at steps 0, 8, 15"
    assert slider(found.checkpoints, None)["value"] == 2
    assert slider(found.checkpoints, 77)["value"] == 2


def test_the_answers_follow_a_run_that_goes_on(world: World, context: Context) -> None:
    job, watch = running(world, watched_samples=1), Watch()
    tell(world, job, 1, loss=0.5)
    assert "No answers yet" in look(context, watch, job.id).answers
    add_checkpoint_answers(world.db, job.id, 0, [answered(0, "red")])
    tell(world, job, 2, loss=0.4)
    assert look(context, watch, job.id).checkpoints == (0,)
    add_checkpoint_answers(world.db, job.id, 4, [answered(0, "green")])
    tell(world, job, 4, loss=0.3)
    found = look(context, watch, job.id)
    assert found.checkpoints == (0, 4)
    assert "1 of 1 changed" in found.answers


@pytest.mark.parametrize(
    ("config", "states", "words"),
    [
        ({}, (), "No answers yet"),
        ({"only_trial": True}, (), "Only a step was tried"),
        ({"watched_samples": 0, "watched_prompts": " "}, (), "Nothing was watched"),
        ({"watched_samples": 2}, (JobStatus.FAILED,), "ended before its first"),
    ],
)
def test_where_there_are_no_answers_it_says_why(
    world: World, context: Context, config: dict[str, Any], states: tuple[JobStatus, ...], words: str
) -> None:
    job = advance(world, running(world, **{"watched_samples": 1, **config}), *states)
    assert words in look(context, Watch(), job.id).answers


def test_other_jobs_have_no_answers_and_no_table(world: World, context: Context) -> None:
    job = running(world, "generate")
    found = look(context, Watch(), job.id)
    assert (found.answers, found.ends, found.training) == ("", "", False)


def test_many_checkpoints_are_named_by_the_first_and_the_last() -> None:
    label = run_views.slider_label([step * 1000 for step in range(40)])
    assert label == "Checkpoints at steps 0, 1,000, 2,000, …, 37,000, 38,000, 39,000"


def test_an_item_that_came_later_has_nothing_before(world: World) -> None:
    job = running(world)
    add_checkpoint_answers(world.db, job.id, 0, [answered(0, "red")])
    add_checkpoint_answers(world.db, job.id, 5, [answered(0, "red"), answered(1, "   ")])
    from storage.checkpoints import checkpoint_answers

    found = checkpoint_view(job, Checkpoints.of(checkpoint_answers(world.db, job.id)), None)
    assert "unchanged" in found
    assert "an empty answer" in found
    assert "0 of 2 changed" in found


@pytest.mark.parametrize(
    ("before", "after", "old", "new"),
    [
        ("a red circle", "a blue circle", "a <del>red </del>circle", "a <ins>blue </ins>circle"),
        ("circle", "circle.", "circle", "circle<ins>.</ins>"),
        ("no", "no", "no", "no"),
        ("<i>", "<i> & so", "&lt;i&gt;", "&lt;i&gt; <ins>&amp; so</ins>"),
    ],
)
def test_words_that_came_and_went_are_marked(before: str, after: str, old: str, new: str) -> None:
    assert marked(before, after) == (old, new)


@given(st.text(), st.text())
def test_marks_lose_no_letter(before: str, after: str) -> None:
    def plain(text: str) -> str:
        assert not re.search(r"<(?!/?(?:ins|del|i)[ >])", text)
        return html.unescape(re.sub(r"<[^>]*>", "", text))

    if before.strip() and after.strip():
        old, new = marked(before, after)
        assert (plain(old), plain(new)) == (before, after)


def test_notes_are_told_once_each_and_with_the_log(world: World, context: Context) -> None:
    job = running(world)
    run = RunFolder(world.folder.run(job.id))
    assert read_notes(run, Told()).notes == ()
    lines = [{"kind": "metric", "step": 1, "values": {"loss": 1.0}, "text": '"note"'}]
    lines += [
        {"kind": "note", "time": 1.0, "text": text} for text in ("One <sequence>.", "Two.", "One <sequence>.")
    ]
    run.events.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "note", "te')
    told = read_notes(run, Told())
    assert told.notes == ("One <sequence>.", "Two.")
    with run.events.open("a") as file:
        file.write('xt": "Two."}\n{"kind": "note", "text": "Three."}\n')
    assert read_notes(run, told).notes == ("One <sequence>.", "Two.", "Three."), "read on, from the torn line"
    found = look(context, Watch(), job.id).log
    assert "<li>One &lt;sequence&gt;.</li>" in found
    assert "Nothing was written" not in found
    run.events.write_text("".join(json.dumps({"kind": "note", "text": str(n)}) + "\n" for n in range(500)))
    many = read_notes(run, Told()).notes
    assert len(many) == NOTES
    assert many[-1] == "499"


def test_an_empty_log_speaks_of_what_is_to_come_or_what_never_came() -> None:
    assert "Nothing was written yet." in log_view(Part("", 0, False), JobStatus.RUNNING)
    assert "The worker wrote nothing." in log_view(Part("\n", 1, False), JobStatus.DONE)
    assert "&lt;x&gt;" in log_view(Part("<x>", 3, False), JobStatus.DONE)


@pytest.fixture
def picture(world: World) -> Path:
    job = running(world)
    path = world.folder.run(job.id) / "seen" / "0.png"
    path.parent.mkdir()
    path.write_bytes(png())
    return path


def test_a_picture_as_the_model_sees_it_is_behind_the_door(world: World, context: Context, picture: Path) -> None:
    client = TestClient(build_api(context, Door(context.settings)), base_url="http://127.0.0.1")
    found = client.get("/runs/1/seen/0.png")
    assert found.content == png()
    assert found.headers["content-type"] == "image/png"
    assert "no-cache" in found.headers["cache-control"]
    again = client.get("/runs/1/seen/0.png", headers={"if-none-match": found.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    picture.write_bytes(png((1, 2, 3), (32, 32)))
    assert client.get("/runs/1/seen/0.png", headers={"if-none-match": found.headers["etag"]}).status_code == 200
    for path in ("/runs/2/seen/0.png", "/runs/1/seen/1.png", "/runs/01/seen/0.png", "/runs/1/seen/x.png"):
        assert client.get(path).status_code == 404, path
    outside = Context(context.settings.model_copy(update={"host": "0.0.0.0"}))
    stranger = TestClient(build_api(outside, Door(outside.settings)), base_url="http://plumb.example")
    assert stranger.get("/runs/1/seen/0.png").status_code == 401


@pytest.mark.parametrize(
    "name", ["../job.json", "notes.txt", "..%2fjob.json", "0.png/..", "0.PNG", "", "00000.png", "0.png\n", "٣.png"]
)
def test_no_name_leads_out_of_the_folder(context: Context, picture: Path, name: str) -> None:
    (picture.parent / "notes.txt").write_text("nobody's business")
    assert seen_picture(context, "1", "0.png") == picture
    assert seen_picture(context, "1", name) is None


def test_a_link_out_of_the_folder_is_not_followed(context: Context, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (picture.parent / "1.png").symlink_to(tmp_path / "secret.png")
    assert seen_picture(context, "1", "1.png") is None
    assert seen_picture(context, "9" * 30, "0.png") is None


def test_sweeps_stand_together_in_the_list(world: World, context: Context) -> None:
    jobs = [world.job("dpo", dataset="first", name=f"first beta=0.{number}") for number in (1, 2, 3)]
    world.db.conn.execute("UPDATE jobs SET sweep = ? WHERE id <= ?", [jobs[0].id, jobs[-1].id])
    world.job()
    found = look(context, Watch(), jobs[0].id)
    assert found.jobs.count("<b>Sweep #1</b>") == 1
    assert "3 jobs<br>3 queued" in found.jobs
    assert f'href="/models?sweep={jobs[0].id}"' in found.jobs
    assert "first beta=0.2" in found.jobs
    assert found.swept
    assert f'<a href="/models?sweep={jobs[0].id}">Compare runs</a>' in found.results
    assert halt_sweep(context, jobs[1].id) == ""
    assert all(job.status is JobStatus.STOPPED for job in store.sweep_jobs(world.db, jobs[0].id))
    assert store.get_job(world.db, 4).status is JobStatus.QUEUED
    assert not look(context, Watch(), jobs[0].id).swept
    assert "Choose a job" in halt_sweep(context, None)


def test_merge_and_push_jobs_are_told_decently(world: World, context: Context) -> None:
    merge = running(world, "merge", adapter=3, name="whole")
    push = running(world, "push", adapter=3, repository="ada/colours")
    other = running(world, "push", merged="whole", repository="ada/whole")
    store.move(world.db, merge.id, JobStatus.DONE)
    found = look(context, Watch(), merge.id)
    for words in (
        "#1 Merge",
        "adapter #3 into demo",
        "#2 Push",
        "adapter #3 to ada/colours",
        "whole (merged) to ada",
    ):
        assert words in found.jobs, words
    assert '<a href="/models">Models</a>' in found.results
    assert not found.clonable
    assert 'href="/models?adapter=3"' in look(context, Watch(), push.id).results
    assert not look(context, Watch(), other.id).clonable
    assert {"merge", "push"} <= KIND_NAMES.keys()


def test_a_trainings_links_lead_to_the_runs_on_its_data(world: World, context: Context) -> None:
    for number in (1, 2, 3):
        one, other = world.candidates(world.sample(number), ["a red circle", "red"])
        choose_by_hand(world.db, USER, one.id, other.id)
    dataset = freeze(world.db, USER, "shapes & more", ("accepted", "proposed"))
    job = store.add_job(
        world.db,
        kind="sft",
        config={"model": "/models/merged/whole", "dataset": dataset.name, "start_adapter": 4},
        user=USER,
        slot_kind="device",
        dataset_id=dataset.id,
    )
    found = look(context, Watch(), job.id)
    assert 'href="/models?dataset=shapes+%26+more">Compare runs</a>' in found.results
    assert "whole on shapes &amp; more, from adapter #4" in found.jobs
    assert found.clonable


def test_the_table_is_empty_without_figures(world: World) -> None:
    assert at_the_end(world.job("dpo"), {"loss": 1.0}) == ""
