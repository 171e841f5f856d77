"""The chat's model process: the engine alone, then over HTTP."""

from __future__ import annotations

import base64
import functools
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
    spoken = [event["column"] for event in first.events if "delta" in event]
    assert spoken.count("left") <= 2, "a stop takes effect at the next token"
    assert spoken.count("right") > 2
    assert second.over.wait(60)
    assert second.text("left")
    wait_for(lambda: not engine.busy)
    alone = ask(engine, max_new_tokens=100, columns=[{"id": "right"}])
    assert first.text("right") == alone.text("right"), "the other column says what it would have said"


@pytest.fixture
def in_letters(engine: Any) -> Iterator[None]:
    """The model says the letters a to z alone, without end: such text can be turned back into its tokens."""
    tokenizer = engine._loaded.processor.tokenizer
    letters = tokenizer("abcdefghijklmnopqrstuvwxyz", add_special_tokens=False)["input_ids"]

    def mute(module: Any, inputs: Any, logits: Any) -> Any:
        muted = logits.new_full(logits.shape, -1e4)
        muted[..., letters] = logits[..., letters]
        return muted

    handle = engine._loaded.model.lm_head.register_forward_hook(mute)
    yield
    handle.remove()


@pytest.fixture(params=[True, False], ids=["our loop", "transformers' generate"])
def either_loop(engine: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(engine._answerer), "own_loop", property(lambda self: request.param))


def begun(left: str, right: str) -> list[dict[str, Any]]:
    return [{"id": "left", "prefix": left}, {"id": "right", "adapter": 5, "prefix": right}]


def prompts_of(heard: Heard) -> dict[str, int]:
    return {event["column"]: event["prompt"] for event in heard.events if "prompt" in event}


@pytest.mark.usefixtures("in_letters", "either_loop")
@pytest.mark.parametrize("images", [(), ("red", "blue")], ids=["text", "two images"])
@pytest.mark.parametrize(("left", "right"), [(5, 5), (1, 7), (0, 3)])
def test_an_answer_goes_on_where_it_was_cut(engine: Any, images: tuple[str, ...], left: int, right: int) -> None:
    engine._kept.clear()
    asked = [said("Go on?", *map(coded, images))]
    whole = ask(engine, messages=asked, max_new_tokens=12)
    texts = whole.text("left"), whole.text("right")
    assert [len(text) for text in texts] == [12, 12]
    assert texts[0] != texts[1]
    columns = begun(texts[0][:left], texts[1][:right])
    for kept in (True, False):  # what was read for the whole answer is known, or not
        rest = ask(engine, messages=asked, max_new_tokens=12 - min(left, right), columns=columns)
        assert rest.text("left").startswith(texts[0][left:])
        assert rest.text("right").startswith(texts[1][right:])
        before = prompts_of(whole)
        assert prompts_of(rest) == {"left": before["left"] + left, "right": before["right"] + right}
        if kept:
            engine._kept.clear()


@pytest.mark.usefixtures("in_letters", "either_loop")
def test_what_an_answer_is_continued_from_is_text_alone(engine: Any) -> None:
    """An image's token or an end that was said in letters is no token; half a character at the cut is left out."""
    heard = ask(engine, columns=begun(f"ab {tiny.IMAGE_TOKEN} c{tiny.END}", "ab"))
    assert not [event for event in heard.events if "error" in event]
    lengths = prompts_of(heard)
    assert lengths["left"] - lengths["right"] == len(f" {tiny.IMAGE_TOKEN} c{tiny.END}")
    half = ask(engine, columns=begun("ab\ufffd", "ab"))
    assert prompts_of(half) == {"left": lengths["right"], "right": lengths["right"]}
    assert half.text("right") == heard.text("right")
    assert half.text("left") == ask(engine, columns=begun("ab", "ab")).text("left")


def test_a_column_whose_history_is_too_long_leaves_the_other_alone(engine: Any) -> None:
    long = [said("Once?"), {"role": "assistant", "content": "on and on " * 600}, said("And?")]
    columns = [{"id": "left"}, {"id": "right", "messages": long}]
    heard = ask(engine, columns=columns)
    (told,) = [event for event in heard.events if "error" in event]
    assert (told["column"], told["code"]) == ("right", "too long")
    assert "exceeds the model's" in told["error"]
    assert heard.done("left") in ("stop", "length")
    assert heard.done("right") is None
    heard = ask(engine, columns=[{"id": "left", "messages": long}])
    assert [event["code"] for event in heard.events if "error" in event] == ["too long"]


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


def chat(served: Served, content: dict[str, Any]) -> list[dict[str, Any]]:
    with httpx.stream("POST", served.url + "/chat", json=content, headers=HEAD, timeout=60) as response:
        return read(response)


def texts(events: list[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for event in events:
        if "delta" in event:
            found[event["column"]] = found.get(event["column"], "") + event["delta"]
    return found


@pytest.mark.slow
def test_eight_people_at_once_each_get_their_own_answers_in_turn(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.gpu.chat import ChatEngine, _Talk

    def asked(user: int, **changes: Any) -> dict[str, Any]:
        shown = coded(("red", "green", "blue")[user % 3])
        return body(user=f"user {user}", messages=[said(f"Number {user}?", shown)], **changes)

    alone = [texts(chat(served, asked(user))) for user in range(8)]
    assert len({one["left"] for one in alone}) == 8
    gate, order = threading.Event(), []
    say, answer = _Talk.say, ChatEngine._answer

    def hold(self: Any, token: int) -> None:
        if self.column.id == "held":
            assert gate.wait(60)
        say(self, token)

    def noted(self: Any, ticket: Any) -> None:
        order.append(ticket.request.request)
        answer(self, ticket)

    monkeypatch.setattr(_Talk, "say", hold)
    monkeypatch.setattr(ChatEngine, "_answer", noted)
    heard: dict[str, list[dict[str, Any]]] = {}
    threads = []

    def send(content: dict[str, Any]) -> None:
        def listen() -> None:
            heard[content["request"]] = chat(served, content)

        threads.append(threading.Thread(target=listen, daemon=True))
        threads[-1].start()

    def health(name: str) -> Any:
        return httpx.get(served.url + "/health", headers=HEAD).json()[name]

    send(body(request="first", user="ada", columns=[{"id": "held"}]))
    wait_for(lambda: order)
    # The first three come with two requests each before anybody else does.
    came = [(user, tab) for user in range(3) for tab in range(2)] + [(user, 0) for user in range(3, 8)]
    for number, (user, tab) in enumerate(came):
        send(asked(user, request=f"{user}.{tab}"))
        wait_for(functools.partial(lambda expected: health("waiting") == expected, number + 1))
    gate.set()
    for thread in threads:
        thread.join(60)
    assert order == ["first", *[f"{user}.0" for user in range(8)], *[f"{user}.1" for user in range(3)]]
    for user, tab in came:
        events = heard[f"{user}.{tab}"]
        assert texts(events) == alone[user]
        assert {event["column"] for event in events if "done" in event} == {"left", "right"}
        told = [event["waiting"] for event in events if "waiting" in event]
        place = order.index(f"{user}.{tab}")
        assert told[-place:] == list(range(place, 0, -1)), "every step forward is told, once"
    assert [event["waiting"] for event in heard["0.1"] if "waiting" in event][:7] == [2, 3, 4, 5, 6, 7, 8]


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
