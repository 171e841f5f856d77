"""`generate` jobs whose candidates come from an outside endpoint: submitted, worked on, stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

import tiny
from factories import USER, World
from job_pages import raw_of
from jobs import outside, outside_generate
from jobs.events import drain
from jobs.outside_generate import seed_of
from jobs.queue import submit
from jobs.runs import RunFolder
from jobs.settings import load_settings
from jobs.worker import work
from openai_server import Fault, OpenAiServer
from storage import jobs as store
from storage.candidates import candidates_of
from storage.errors import UserError
from storage.lifecycle import JobStatus
from storage.records import Job
from workbench import job_launch, job_words
from workbench.context import Context
from workbench.forms import build_form
from workbench.job_desk import start
from workbench.job_look import look
from workbench.pages import jobs as jobs_page
from workbench.progress import Watch

ROOT = Path(__file__).resolve().parent.parent
CONFIG: dict[str, Any] = {"outside": "llava-dpo@office", "candidates": 3, "max_new_tokens": 20, "seed": 3}

pytestmark = pytest.mark.usefixtures("no_supervisor")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAiServer]:
    monkeypatch.setattr(outside, "BACKOFF_SECONDS", 0.001)
    with OpenAiServer(answer=lambda body: f"seed {body['seed']}") as made:
        monkeypatch.setenv("PLUMB_ENDPOINTS", f"office={made.url}")
        yield made


@pytest.fixture
def lab(world: World, server: OpenAiServer) -> World:
    """A world that knows the endpoint."""
    world.settings = world.settings.model_copy(update={"endpoints": load_settings().endpoints})
    return world


def submitted(lab: World, **changes: Any) -> tuple[Job, RunFolder]:
    job = submit(lab.db, lab.settings, "generate", {**CONFIG, **changes}, USER)
    return job, RunFolder(lab.folder.run(job.id))


def worked(lab: World, **changes: Any) -> tuple[Job, RunFolder]:
    job, run = submitted(lab, **changes)
    work(run.path)
    return job, run


def ended(run: RunFolder) -> dict[str, Any]:
    return tiny.events(run, "end")[-1]


def notes(run: RunFolder) -> list[str]:
    return [str(event["text"]) for event in tiny.events(run, "note")]


def answered(run: RunFolder) -> list[tuple[int, int]]:
    return sorted((event["sample_id"], event["number"]) for event in tiny.events(run, "candidate"))


def test_every_sample_gets_its_candidates_and_they_are_stored(lab: World, server: OpenAiServer) -> None:
    samples = [lab.sample(number) for number in range(4)]
    job, run = submitted(lab)
    assert (job.slot_kind, job.device, job.adapter_id) == ("network", None, None)
    assert job_words.summary(job) == "3 candidates a sample from llava-dpo@office"
    claimed = store.claim_next(lab.db, "network", "network-0")
    assert claimed is not None
    attempt = store.start_attempt(lab.db, job.id)
    assert work(run.path) == 0, ended(run)
    drain(lab.db, lab.folder, attempt.id)
    found = candidates_of(lab.db, samples)
    for sample in samples:
        assert [one.number for one in sorted(found[sample], key=lambda one: one.number or 0)] == [0, 1, 2]
        for one in found[sample]:
            assert (one.model, one.adapter_id, one.job_id) == ("llava-dpo@office", None, job.id)
            assert one.text == f"seed {seed_of(3, sample, one.number or 0)}"
            assert (one.finish, one.tokens) == ("stop", 4)
            assert one.settings["model"] == "llava-dpo@office"
    assert len({one.text for answers in found.values() for one in answers}) == 12
    body = server.asked[0]
    assert body["model"] == "llava-dpo"
    assert body["max_tokens"] == 20
    assert "n" not in body, "not every server knows it"
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    progress = [(event["done"], event["total"]) for event in tiny.events(run, "progress")]
    assert (progress[0], progress[-1]) == ((0, 4), (4, 4))
    assert store.get_job(lab.db, job.id).status is JobStatus.RUNNING


def test_what_has_answers_of_this_model_is_missing_nothing(lab: World, server: OpenAiServer) -> None:
    lab.candidates(lab.sample(1), ["of the base"])
    _, run = worked(lab)
    assert len(answered(run)) == 3, "the base's answers are others"
    attempt = store.start_attempt(lab.db, store.claim_next(lab.db, "network", "network-0").id)  # type: ignore[union-attr]
    drain(lab.db, lab.folder, attempt.id)
    with pytest.raises(UserError, match="nothing to generate"):
        submitted(lab)
    submitted(lab, outside="llava@office")


def test_several_are_asked_at_once(lab: World, server: OpenAiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(6, timeout=20)

    def answer(body: dict[str, Any]) -> str:
        together.wait()  # would break if fewer were asked at once
        return "x"

    server.answer = answer
    for number in range(4):
        lab.sample(number)
    _, run = worked(lab, batch_size=2)
    assert len(answered(run)) == 12
    assert server.most_at_once == 6, "no more than samples a batch times candidates"
    server.answer = lambda body: "x"
    server.delay, server.most_at_once = 0.02, 0
    monkeypatch.setattr(outside_generate, "MOST_AT_ONCE", 4)
    worked(lab, samples={"only_missing": False})
    assert server.most_at_once == 4


def test_a_second_attempt_asks_only_for_what_is_missing(lab: World, server: OpenAiServer) -> None:
    for number in range(4):
        lab.sample(number)
    _, run = worked(lab)
    whole = answered(run)
    kept = [json.dumps(event) for event in tiny.events(run, "candidate")[:7]]
    run.events.write_text("\n".join(kept) + "\n" + kept[0][:30], encoding="utf-8")
    asked = len(server.asked)
    assert work(run.path) == 0
    assert len(server.asked) - asked == 5
    lines = [line for line in run.events.read_text(encoding="utf-8").splitlines() if line != kept[0][:30]]
    found = [event for line in lines if (event := json.loads(line))["kind"] == "candidate"]
    assert sorted((event["sample_id"], event["number"]) for event in found) == whole
    assert all(event["text"] == f"seed {event['settings']['request_seed']}" for event in found)
    assert work(run.path) == 0
    assert len(server.asked) - asked == 5


def test_a_refused_sample_gets_one_note_and_the_others_go_on(lab: World, server: OpenAiServer) -> None:
    samples = [lab.sample(number, question=f"question {number}?", images=0) for number in range(5)]

    def fault_for(taken: Any) -> Fault:
        refused = taken.body["messages"][0]["content"] == "question 2?"
        return Fault("status", 400, {"error": {"message": "at most 9 tokens"}}) if refused else Fault()

    server.fault_for = fault_for  # type: ignore[method-assign]
    _, run = worked(lab)
    assert ended(run)["status"] == "done"
    assert answered(run) == [(sample, number) for sample in samples if sample != samples[2] for number in range(3)]
    assert len(notes(run)) == 1
    assert notes(run)[0].startswith(
        f"Sample {samples[2]} is left out: The endpoint 'office' refuses the request (400"
    )
    assert tiny.events(run, "progress")[-1]["done"] == 5


def test_a_missing_image_is_of_its_sample_alone(lab: World, server: OpenAiServer) -> None:
    first, second = lab.sample(1), lab.sample(2)
    _, run = submitted(lab)
    row = next(row for row in run.rows() if row["sample_id"] == first)
    run.image(row["messages"][0]["content"][0]["image"]).unlink()
    assert work(run.path) == 0
    assert answered(run) == [(second, number) for number in range(3)]
    assert [note.partition(":")[0] for note in notes(run)] == [f"Sample {first} is left out"]


def test_where_all_are_refused_the_job_fails(lab: World, server: OpenAiServer) -> None:
    lab.sample(1)
    lab.sample(2)
    server.script(default=Fault("status", 400, {"error": {"message": "no"}}))
    _, run = worked(lab)
    assert (ended(run)["status"], ended(run)["cause"]) == ("failed", "setting")
    assert ended(run)["reason"] == "None of the 2 samples could be answered; the notes say why for each."


def test_one_prompt_that_breaks_the_server_does_not_end_the_job(lab: World, server: OpenAiServer) -> None:
    samples = [lab.sample(number, question=f"question {number}?", images=0) for number in range(4)]

    def fault_for(taken: Any) -> Fault:
        return Fault("status", 500, "") if taken.body["messages"][0]["content"] == "question 1?" else Fault()

    server.fault_for = fault_for  # type: ignore[method-assign]
    _, run = worked(lab, candidates=1)
    assert ended(run)["status"] == "done"
    assert answered(run) == [(sample, 0) for sample in samples if sample != samples[1]]
    assert "Given up after 6 tries" in notes(run)[0]


def test_an_endpoint_out_of_order_ends_the_job(lab: World, server: OpenAiServer) -> None:
    for number in range(40):
        lab.sample(number, colour=1)
    server.script(default=Fault("raw", body="<html>", content_type="text/html"))
    _, run = worked(lab, candidates=1, batch_size=2)
    assert ended(run)["status"] == "failed"
    assert "answers with a web page" in ended(run)["reason"]
    assert outside_generate.FAILED_IN_A_ROW <= len(notes(run)) <= outside_generate.FAILED_IN_A_ROW + 2
    assert len(server.asked) < 20


@pytest.mark.parametrize(
    ("prepare", "words", "cause"),
    [
        (lambda server: server.stop(), "cannot be reached", "network"),
        (lambda server: setattr(server, "key", "sk-another"), "PLUMB_ENDPOINT_KEY_OFFICE", "setting"),
        (lambda server: setattr(server, "models", ("other",)), "does not know the model 'llava-dpo'", "setting"),
        (lambda server: server.script(default=Fault("status", 503, "")), "a fault of its own", "network"),
        (lambda server: os.environ.pop("PLUMB_ENDPOINTS"), "There is no endpoint called 'office'", "setting"),
    ],
)
def test_what_ends_a_job_says_whether_another_try_may_help(
    lab: World, server: OpenAiServer, prepare: Callable[[OpenAiServer], object], words: str, cause: str
) -> None:
    lab.sample(1)
    _, run = submitted(lab)
    prepare(server)
    assert work(run.path) == 1
    assert (ended(run)["status"], ended(run)["cause"]) == ("failed", cause)
    assert words in ended(run)["reason"]
    assert str(server.port) not in run.events.read_text(encoding="utf-8")


def test_stop_ends_it_at_once(lab: World, server: OpenAiServer, wait_for: Callable[..., None]) -> None:
    for number in range(30):
        lab.sample(number, colour=1)
    server.script(*[Fault()] * 3, default="hang")
    _, run = submitted(lab)
    thread = threading.Thread(target=work, args=(run.path,))
    thread.start()
    wait_for(lambda: server.at_once >= 8 and len(tiny.events(run, "candidate")) == 3, "requests hang", 30)
    run.control.write_text("stop")
    thread.join(20)
    assert not thread.is_alive()
    assert ended(run)["status"] == "stopped"
    assert len(answered(run)) == 3
    wait_for(lambda: server.at_once == 0, "the server sees that nobody listens", 20)


def test_the_worker_imports_no_torch(lab: World, server: OpenAiServer) -> None:
    lab.sample(1)
    _, run = submitted(lab)
    code = (
        "import sys; from pathlib import Path; from jobs.worker import work\n"
        "print(work(Path(sys.argv[1])), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "0 False\n", result.stderr
    assert len(answered(run)) == 3


def test_keys_are_in_no_file(lab: World, server: OpenAiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMB_ENDPOINT_KEY_OFFICE", "sk-very-secret-word")
    server.key = "sk-very-secret-word"
    first = lab.sample(1)
    server.script(Fault("status", 400, {"error": {"message": "your key sk-very-secret-word is of no use"}}))
    lab.sample(2)
    _, run = worked(lab, candidates=1, batch_size=1)
    assert notes(run)[0].startswith(f"Sample {first} is left out: ")
    assert "your key •••" in notes(run)[0]
    for file in lab.folder.root.rglob("*"):
        if file.is_file():
            assert b"sk-very-secret-word" not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"outside": "llava"}, "outside = 'llava': write it as MODEL@ENDPOINT"),
        ({"outside": "llava@Office"}, "write it as MODEL@ENDPOINT"),
        ({"outside": "llava@office", "adapter": 3}, "both say who answers"),
        ({"outside": "llava@lab"}, "There is no endpoint called 'lab'. There are office;"),
        ({"outside": "gone@office"}, "does not serve 'gone'. It serves llava, llava-dpo"),
    ],
)
def test_what_cannot_be_asked_is_not_queued(lab: World, changes: dict[str, Any], told: str) -> None:
    lab.sample(1)
    with pytest.raises(UserError, match=told):
        submitted(lab, **changes)
    assert store.list_jobs(lab.db) == []


def test_an_endpoint_that_is_down_may_be_queued_for(lab: World, server: OpenAiServer) -> None:
    lab.sample(1)
    server.stop()
    job, _ = submitted(lab, model="a/base-that-nobody-has", device="cuda:7")
    assert (job.slot_kind, job.device) == ("network", None), "the base is a name, and no device is asked for"


def test_the_form_offers_what_endpoints_serve(lab: World, server: OpenAiServer) -> None:
    without = lab.settings.model_copy(update={"endpoints": {}})
    assert job_launch.offers(lab.db, without).choices["generate"]["outside"] == []
    choices = job_launch.offers(lab.db, lab.settings).choices["generate"]["outside"]
    assert choices == [
        ("none: base or adapter", ""),
        ("llava (office)", "llava@office"),
        ("llava-dpo (office)", "llava-dpo@office"),
    ]
    control = next(one for one in job_launch.controls("generate") if one.path == "outside")
    assert (control.kind, control.default, control.title) == ("text", "", "Outside model")
    assert "MODEL@ENDPOINT" in control.info


def test_the_field_is_shown_where_there_is_something_to_choose(lab: World, server: OpenAiServer) -> None:
    kind = "generate"
    with gr.Blocks():
        form = build_form(job_launch.controls(kind), job_launch.MAIN[kind], job_launch.DROPDOWNS[kind])
    field = form.component("outside")
    values = job_launch.start_values(kind, {})
    offered = job_launch.offers(lab.db, lab.settings).choices[kind]
    found = jobs_page._filled(lab.db, form, values, offered)[field]
    assert (found["visible"], found["value"]) == (True, "")
    found = jobs_page._filled(lab.db, form, values, {**offered, "outside": []})[field]
    assert found["visible"] is False
    again = values | {"outside": "gone@lab"}
    found = jobs_page._filled(lab.db, form, again, {**offered, "outside": []})[field]
    assert (found["visible"], found["value"]) == (True, "gone@lab"), "an old job's stays to be seen"


@pytest.mark.parametrize("held", ["llava@office", " llava@office "])
def test_choosing_it_in_the_form_starts_such_a_job(lab: World, server: OpenAiServer, held: str) -> None:
    lab.sample(1)
    context = Context(lab.settings)
    raw = raw_of("generate", outside=held, candidates=2.0, max_new_tokens=9.0)
    job = start(context, "ada", "generate", job_launch.controls("generate"), raw)
    assert (job.slot_kind, job.config["outside"]) == ("network", "llava@office")
    assert job_launch.rerun_values(job)["outside"] == "llava@office"
    assert "llava@office" in look(context, Watch(), job.id).jobs
    run = RunFolder(lab.folder.run(job.id))
    assert work(run.path) == 0, ended(run)
    assert len(answered(run)) == 2
    none = start(context, "ada", "generate", job_launch.controls("generate"), raw_of("generate", outside=None))
    assert (none.slot_kind, none.config["outside"]) == ("device", "")
