"""The chat's model process: the engine alone, then over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

import tiny
from jobs.runs import RunFolder
from jobs.worker import work
from storage.errors import NotFound, PlumbError
from test_generate_job import make_adapter

KEY = "a-secret-of-this-start"
HEAD = {"Authorization": f"Bearer {KEY}"}


def coded(colour: str) -> dict[str, str]:
    buffer = io.BytesIO()
    tiny.picture(colour).save(buffer, format="PNG")
    return {"type": "image", "data": base64.b64encode(buffer.getvalue()).decode()}


def said(text: str, *images: Any) -> dict[str, Any]:
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def body(**changes: Any) -> dict[str, Any]:
    columns = [{"id": "left", "adapter": None}, {"id": "right", "adapter": 5}]
    return {"messages": [said("what?", coded("red"))], "columns": columns, "max_new_tokens": 12, **changes}


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {condition}")


class Heard:
    """What an engine emitted for one request."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.over = threading.Event()

    def __call__(self, event: dict[str, Any] | None) -> None:
        if event is None:
            self.over.set()
        else:
            self.events.append(event)

    def text(self, column: str) -> str:
        return "".join(
            event["delta"] for event in self.events if event.get("column") == column and "delta" in event
        )

    def done(self, column: str) -> Any:
        return next(
            (event["done"] for event in self.events if event.get("column") == column and "done" in event), None
        )


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "five")


@pytest.fixture(scope="module")
def engine(adapter: Path) -> Iterator[Any]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from jobs.gpu.chat import ChatEngine
    from jobs.gpu.loading import Loaded
    from jobs.gpu.lora import attach

    folder = tiny.tiny_llava()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    loaded = Loaded(str(folder), model, AutoProcessor.from_pretrained(folder), torch.device("cpu"))
    engine = ChatEngine(loaded, attach(loaded, {"a5": (adapter, "five")}), {5: "a5"}, note=print)
    yield engine
    engine.close()


def ask(engine: Any, **changes: Any) -> Heard:
    from jobs.gpu.chat_requests import ChatRequest

    heard = Heard()
    engine.submit(ChatRequest.model_validate(body(**changes)), heard)
    assert heard.over.wait(60)
    return heard


def test_two_columns_speak_in_turn_and_differently(engine: Any) -> None:
    heard = ask(engine)
    assert not [event for event in heard.events if "error" in event]
    assert heard.text("left")
    assert heard.text("left") != heard.text("right")
    assert {heard.done("left"), heard.done("right")} <= {"stop", "length"}
    order = [event["column"] for event in heard.events if "delta" in event]
    assert order[:4].count("left") == 2  # not one after the other


def test_each_column_says_what_it_would_say_alone(engine: Any) -> None:
    both = ask(engine, temperature=0.8, seed=4)
    for name, adapter in (("left", None), ("right", 5)):
        alone = ask(engine, temperature=0.8, seed=4, columns=[{"id": name, "adapter": adapter}])
        assert alone.text(name) == both.text(name)
    same = ask(engine, temperature=0.8, columns=[{"id": "a"}, {"id": "b"}])
    assert same.text("a") == same.text("b")
    assert ask(engine, temperature=0.8, seed=9).text("left") != both.text("left")


def test_what_was_kept_for_others_goes_where_memory_runs_out(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(engine)
    assert engine._kept.bytes

    def full(*arguments: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(engine, "_together", full)
    assert any("error" in event for event in ask(engine).events)
    assert engine._kept.bytes == 0
    monkeypatch.undo()
    assert ask(engine).text("left")


def test_turns_images_and_text_in_any_order(engine: Any) -> None:
    messages = [
        said("hello"),
        {"role": "assistant", "content": "hi"},
        said("and these?", coded("red"), coded("blue")),
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": "which is warmer? <image>"},
    ]
    heard = ask(engine, messages=messages)
    assert heard.text("left")
    own = [{"id": "left", "messages": messages}, {"id": "right", "adapter": 5, "messages": messages[:1]}]
    assert ask(engine, messages=[], columns=own).text("left") == heard.text("left")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"messages": [said("x", {"type": "image", "data": "@@@"})]}, "not base64"),
        ({"messages": [said("x", {"type": "image", "data": "AAAA"})]}, "cannot be read"),
        ({"messages": [said("long " * tiny.CONTEXT)]}, "exceeds the model's 256"),
    ],
)
def test_what_cannot_be_answered_is_said(engine: Any, changes: dict[str, Any], words: str) -> None:
    heard = ask(engine, **changes)
    assert words in heard.events[-1]["error"]
    assert ask(engine).text("left")  # the next request is served


def test_an_unknown_adapter_is_refused(engine: Any) -> None:
    with pytest.raises(NotFound, match="Adapter 6 of column 'x' is not loaded here"):
        ask(engine, columns=[{"id": "x", "adapter": 6}])


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": []},
        {"columns": [{"id": "a"}, {"id": "a"}]},
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"temperature": 3},
        {"max_new_tokens": 0},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]},
    ],
)
def test_requests_that_are_none(changes: dict[str, Any]) -> None:
    from jobs.gpu.chat_requests import ChatRequest

    with pytest.raises(ValidationError):
        ChatRequest.model_validate(body(**changes))


def test_stop_waiting_and_order(engine: Any) -> None:
    from jobs.gpu.chat_requests import ChatRequest

    gate, first, second = threading.Event(), Heard(), Heard()

    def slow(event: dict[str, Any] | None) -> None:
        first(event)
        if event and "delta" in event:
            gate.wait(30)

    long = body(request="one", max_new_tokens=100, columns=[{"id": "left"}, {"id": "right"}])
    engine.submit(ChatRequest.model_validate(long), slow)
    wait_for(lambda: first.text("left"))
    engine.submit(ChatRequest.model_validate(body(request="two")), second)
    assert second.events == [{"request": "two"}, {"waiting": 1}]
    assert engine.busy
    assert engine.waiting == 1
    assert engine.idle_seconds == 0.0
    with pytest.raises(PlumbError, match="already in line"):
        engine.submit(ChatRequest.model_validate(body(request="two")), Heard())
    assert engine.stop("one", "left")
    assert not engine.stop("three")
    gate.set()
    assert first.over.wait(60)
    assert first.done("left") == "stopped"
    assert first.done("right") in ("stop", "length")
    assert len(first.text("left")) < len(first.text("right"))
    assert second.over.wait(60)
    assert second.text("left")
    wait_for(lambda: not engine.busy)


def test_the_model_is_left_as_it_was(engine: Any) -> None:
    """An error in the middle of a column must not leave the wrong adapter speaking."""
    before = ask(engine).text("left")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.gpu.chat._Talk.say", lambda self, token: 1 / 0)
        assert "ZeroDivisionError" in ask(engine).events[-1]["error"]
    assert ask(engine).text("left") == before


class Served:
    """A serve job in a thread of this process."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.thread = threading.Thread(target=lambda: work(run.path), daemon=True)
        self.thread.start()
        self.port = wait_for(self._port)
        self.url = f"http://127.0.0.1:{self.port}"

    def _port(self) -> int | None:
        if not self.run.events.exists():
            return None
        if ends := tiny.events(self.run, "end"):
            raise AssertionError(ends)
        found = tiny.events(self.run, "endpoint")
        return int(found[0]["port"]) if found else None

    def ended(self) -> dict[str, Any]:
        self.thread.join(60)
        return tiny.events(self.run, "end")[-1]


def serve_run(folder: Path, adapter: Path, **changes: Any) -> RunFolder:
    config = {"dtype": "float32", "adapters": [5], **changes}
    return tiny.frozen_run(folder, "serve", config, adapters={5: adapter})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, adapter: Path) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUMB_SERVE_KEY", KEY)
        served = Served(serve_run(tmp_path_factory.mktemp("serve") / "run", adapter))
        yield served
        served.run.ask_to_stop()
        assert served.ended()["status"] == "stopped"


def read(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.iter_lines()]


@pytest.mark.parametrize("head", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}])
def test_nothing_is_answered_without_the_key(served: Served, head: dict[str, str]) -> None:
    for method, path in (
        ("GET", "/health"),
        ("POST", "/chat"),
        ("POST", "/stop"),
        ("GET", "/docs"),
        ("GET", "/x"),
    ):
        assert httpx.request(method, served.url + path, headers=head).status_code == 401


def test_chat_over_http(served: Served) -> None:
    with httpx.stream("POST", served.url + "/chat", json=body(request="r1"), headers=HEAD, timeout=60) as response:
        assert response.status_code == 200
        events = read(response)
    assert events[0] == {"request": "r1"}
    done = {event["column"]: event for event in events if "done" in event}
    assert set(done) == {"left", "right"}
    assert all(event["tokens"] <= 12 for event in done.values())
    health = httpx.get(served.url + "/health", headers=HEAD).json()
    assert health["adapters"] == [5]
    assert health["model"] == str(tiny.tiny_llava())


def test_errors_over_http(served: Served) -> None:
    def post(path: str, content: Any) -> httpx.Response:
        return httpx.post(served.url + path, json=content, headers=HEAD, timeout=60)

    unknown = post("/chat", body(columns=[{"id": "x", "adapter": 6}]))
    assert (unknown.status_code, "Adapter 6" in unknown.json()["error"]) == (422, True)
    wrong = post("/chat", body(temperature=9))
    assert wrong.status_code == 422
    assert "temperature" in wrong.json()["error"]
    assert post("/stop", {"request": "none"}).json() == {"stopped": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.gpu.serve.LARGEST_BODY", 100)
        assert post("/chat", body()).status_code == 413
    unsized = httpx.post(served.url + "/chat", headers=HEAD, content=iter([b"{}"]))
    assert unsized.status_code == 413


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Decoding that goes on, a token each 10 ms, until a column is stopped; the event says that one was."""
    from jobs.gpu import chat

    ended = threading.Event()
    real = chat._Talk.end

    def end(self: Any, reason: str) -> None:
        if reason == "stopped":
            ended.set()
        real(self, reason)

    class Endless:
        def __init__(self, model: Any, rows: Any, asked: Sequence[Any], *_: Any) -> None:
            self.open = set(range(len(asked)))

        def stop(self, column: int) -> None:
            self.open.remove(column)

        def step(self) -> list[tuple[int, int]]:
            time.sleep(0.01)
            return [(column, 65) for column in sorted(self.open)]

    monkeypatch.setattr(chat, "Columns", Endless)
    monkeypatch.setattr(chat._Talk, "end", end)
    return ended


def test_a_client_that_leaves_stops_its_answer(served: Served, endless: threading.Event) -> None:
    with httpx.stream("POST", served.url + "/chat", json=body(), headers=HEAD, timeout=60) as response:
        assert next(response.iter_lines())
    assert endless.wait(30)
    wait_for(lambda: not httpx.get(served.url + "/health", headers=HEAD).json()["busy"])


def test_stop_over_http(served: Served, endless: threading.Event) -> None:
    events = []
    with httpx.stream("POST", served.url + "/chat", json=body(request="r9"), headers=HEAD, timeout=60) as response:
        for line in response.iter_lines():
            events.append(json.loads(line))
            if len(events) == 5:
                stopped = httpx.post(served.url + "/stop", json={"request": "r9"}, headers=HEAD).json()
                assert stopped == {"stopped": True}
    assert {event["column"]: event["done"] for event in events if "done" in event} == {
        "left": "stopped",
        "right": "stopped",
    }


def test_control_stops_what_streams_and_leaves(
    tmp_path: Path, adapter: Path, endless: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUMB_SERVE_KEY", KEY)
    served = Served(serve_run(tmp_path / "run", adapter))
    events = []
    with httpx.stream("POST", served.url + "/chat", json=body(), headers=HEAD, timeout=60) as response:
        for line in response.iter_lines():
            events.append(json.loads(line))
            if len(events) == 5:
                served.run.ask_to_stop()
    assert [event["done"] for event in events if "done" in event] == ["stopped", "stopped"]
    assert served.ended()["status"] == "stopped"


def test_it_leaves_when_idle(tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMB_SERVE_KEY", KEY)
    served = Served(serve_run(tmp_path / "run", adapter, idle_minutes=0.005))
    assert served.ended()["status"] == "done"
    assert "idle for 0.005 minutes" in tiny.events(served.run, "note")[-1]["text"]


def test_it_refuses_to_start_without_a_key(tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("", "short"):
        monkeypatch.setenv("PLUMB_SERVE_KEY", key)
        run = serve_run(tmp_path / f"run{key}", adapter)
        assert work(run.path) == 1
        assert "PLUMB_SERVE_KEY is not set" in tiny.events(run, "end")[-1]["reason"]


@pytest.mark.slow
def test_as_a_process_of_its_own(tmp_path: Path, adapter: Path) -> None:
    run = serve_run(tmp_path / "run", adapter)
    with run.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.worker", str(run.path)],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PLUMB_SERVE_KEY": KEY},
            stdout=log,
            stderr=log,
        )
    try:
        port = wait_for(lambda: run.events.exists() and tiny.events(run, "endpoint"))[0]["port"]
        with httpx.stream(
            "POST", f"http://127.0.0.1:{port}/chat", json=body(), headers=HEAD, timeout=60
        ) as response:
            assert [event for event in read(response) if "done" in event]
        process.terminate()  # SIGTERM, as the system's shutdown sends it
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert tiny.events(run, "end")[-1]["status"] == "stopped"
    assert KEY not in run.log.read_text() + run.events.read_text()
