"""SteerLM's attribute string: where it stands, and that whoever speaks with such an adapter asks with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from factories import USER, World
from jobs import queue
from jobs.merged import Merged
from jobs.runs import RunFolder
from jobs.steerlm import SENTENCE, attribute_string, with_attributes
from storage.records import METRICS
from test_generate_job import make_adapter
from test_serve_job import Heard, body, coded, said
from test_training_rows import adapter

BEST = "Helpfulness:4,Correctness:4,Coherence:4,Complexity:4,Verbosity:4"


def test_the_string_is_the_papers() -> None:
    assert attribute_string() == BEST
    values = dict(zip(METRICS, (0, 1, 2, 3, 4), strict=True))
    assert attribute_string(values) == "Helpfulness:0,Correctness:1,Coherence:2,Complexity:3,Verbosity:4"
    assert attribute_string({**values, "candidate_id": 9}) == attribute_string(values)
    assert SENTENCE.startswith("Please answer the question such that your response is in the following attributes")
    assert SENTENCE.endswith("in 5-point Likert scale:")


def test_the_string_ends_the_last_users_turn() -> None:
    tail = f"\n{SENTENCE}\n{BEST}"
    plain = [{"role": "user", "content": "why?"}]
    assert with_attributes(plain) == [{"role": "user", "content": f"why?{tail}"}]
    assert plain == [{"role": "user", "content": "why?"}], "what is given stays as it is"
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chat = [*before, *tiny.ask("what?", "x.png")]
    found = with_attributes(chat)
    assert found[:2] == before
    assert found[2]["content"] == [{"type": "image", "image": "x.png"}, {"type": "text", "text": f"what?{tail}"}]
    assert chat[2] == tiny.ask("what?", "x.png")[0]


def test_after_an_image_the_string_is_a_part_of_its_own() -> None:
    turn = {"role": "user", "content": [{"type": "text", "text": "this?"}, {"type": "image", "image": "x.png"}]}
    (found,) = with_attributes([turn])
    assert found["content"][:2] == turn["content"]
    assert found["content"][2] == {"type": "text", "text": f"{SENTENCE}\n{BEST}"}
    (bare,) = with_attributes([{"role": "user", "content": []}])
    assert bare["content"] == [{"type": "text", "text": f"{SENTENCE}\n{BEST}"}]


@pytest.mark.parametrize(("method", "is_told"), [("steerlm", True), ("dpo", False), (None, False)])
def test_a_generate_job_asks_a_steerlm_adapter_with_it(
    world: World, no_supervisor: None, method: str | None, is_told: bool
) -> None:
    world.sample()
    values = {"adapter": adapter(world, method)} if method else {}
    job = queue.submit(world.db, world.settings, "generate", values, USER)
    run = RunFolder(world.folder.run(job.id))
    (row,) = run.rows()
    text = row["messages"][0]["content"][-1]["text"]
    assert text == "what shape is in the image?" + (f"\n{SENTENCE}\n{BEST}" if is_told else "")
    told = json.loads((run.path / "data" / "adapters.json").read_text(encoding="utf-8"))
    assert [entry["method"] for entry in told.values()] == ([method] if method else [])


def test_the_worker_reads_an_adapters_method_where_it_is_told(tmp_path: Path) -> None:
    from jobs.gpu.lora import frozen_adapters

    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "adapters.json"
    file.write_text(json.dumps({"3": {"sha256": "ab", "name": "x", "method": "steerlm"}}), encoding="utf-8")
    assert frozen_adapters(RunFolder(tmp_path))[3].method == "steerlm"
    file.write_text(json.dumps({"3": {"sha256": "ab", "name": "x"}}), encoding="utf-8")
    assert frozen_adapters(RunFolder(tmp_path))[3].method == "", "of version 0.2"


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """The chat's engine with an adapter that SteerLM made, and with the same one of another method."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from jobs.gpu.chat import ChatEngine
    from jobs.gpu.loading import Loaded
    from jobs.gpu.lora import attach

    files, folder = make_adapter(tmp_path_factory.mktemp("adapters") / "five"), tiny.tiny_llava()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    loaded = Loaded(str(folder), model, AutoProcessor.from_pretrained(folder), torch.device("cpu"))
    speaker = attach(loaded, {"a5": (files, "five")})
    made = [ChatEngine(loaded, speaker, {5: "a5"}, print, steered) for steered in ({5}, ())]
    yield made[0], made[1]
    for engine in made:
        engine.close()


def answers(engine: Any, text: str, **changes: Any) -> tuple[str, str]:
    from jobs.gpu.chat_requests import ChatRequest

    heard = Heard()
    engine.submit(ChatRequest.model_validate(body(messages=[said(text, coded("red"))], **changes)), heard)
    assert heard.over.wait(60)
    assert not [event for event in heard.events if "error" in event]
    return heard.text("left"), heard.text("right")


def test_the_chat_asks_a_steerlm_adapter_with_it_and_the_base_without(engines: tuple[Any, Any]) -> None:
    steered, plain = engines
    left, right = answers(steered, "what?")
    assert left == answers(plain, "what?")[0], "the base is asked as ever"
    assert right == answers(plain, f"what?\n{SENTENCE}\n{BEST}")[1]
    assert right != answers(plain, "what?")[1]


def test_the_chat_asks_it_for_other_values_where_the_person_wants_them(engines: tuple[Any, Any]) -> None:
    steered, plain = engines
    left, right = answers(steered, "what?", attributes={"verbosity": 0, "complexity": 1})
    wanted = "Helpfulness:4,Correctness:4,Coherence:4,Complexity:1,Verbosity:0"
    assert (left, right) == (answers(plain, "what?")[0], answers(plain, f"what?\n{SENTENCE}\n{wanted}")[1])


def test_the_serve_job_knows_which_adapters_to_steer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: tuple[Any, Any]
) -> None:
    from jobs.gpu import serve as module
    from jobs.reporter import Reporter, Stopped

    files = make_adapter(tmp_path / "adapter")
    values = {"dtype": "float32", "adapters": [5, 6]}
    run = tiny.frozen_run(tmp_path / "run", "serve", values, adapters={5: files, 6: files})
    listed = run.path / "data" / "adapters.json"
    told = json.loads(listed.read_text(encoding="utf-8"))
    told["5"]["method"], told["6"]["method"] = "dpo", "steerlm"
    listed.write_text(json.dumps(told), encoding="utf-8")
    found: list[Any] = []

    def engine(*arguments: Any) -> Any:
        found.extend(arguments)
        raise Stopped("seen")

    monkeypatch.setattr(module, "ChatEngine", engine)
    monkeypatch.setenv("PLUMB_SERVE_KEY", "x" * 20)
    job = run.job()
    config: Any = job.parsed()
    with pytest.raises(Stopped):
        module.serve(run, job, config, Reporter(run))
    assert found[-1] == {6}


@pytest.mark.parametrize(("method", "is_told"), [("steerlm", True), ("dpo", False)])
def test_merged_weights_are_asked_as_their_adapter_was(
    world: World, no_supervisor: None, tmp_path: Path, method: str, is_told: bool
) -> None:
    made = Merged("demo", 3, "x", "ab", "float32", 1, "2026-11-23", method)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "plumb.json").write_text(made.text(), encoding="utf-8")
    world.sample()
    job = queue.submit(world.db, world.settings, "generate", {"model": str(tmp_path)}, USER)
    (row,) = RunFolder(world.folder.run(job.id)).rows()
    assert (SENTENCE in row["messages"][0]["content"][-1]["text"]) is is_told
