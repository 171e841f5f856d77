"""A chat column of an outside endpoint: its stream, its faults, its end."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from factories import USER, World, png
from jobs.outside_stream import Limits
from jobs.settings import Settings
from openai_server import Fault, OpenAiServer
from storage.chats import own_conversation, text_of
from storage.jobs import list_jobs
from storage.speakers import Speaker
from workbench.chat_client import Delta, Done, Event, Failed
from workbench.chat_desk import Cast, Decoding, View
from workbench.chat_round import Stops, send
from workbench.context import Context
from workbench.outside_chat import stream_outside

KEY = "sk-very-secret-word"
LLAVA = Speaker("llava@office")
QUICK = Limits(first=20.0, silence=20.0, total=40.0)
QUESTION = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}]}]


@pytest.fixture
def server() -> Iterator[OpenAiServer]:
    with OpenAiServer() as made:
        yield made


def settings_of(server: OpenAiServer) -> Settings:
    return Settings(devices=("cpu",), endpoints={"office": server.url})


def told(
    server: OpenAiServer, speaker: Speaker = LLAVA, messages: Any = QUESTION, limits: Limits = QUICK, **values: Any
) -> list[Event]:
    """All events of one answer; whatever comes, the last one ends it, and no other does."""

    async def listen() -> list[Event]:
        stream = stream_outside(settings_of(server), "left", speaker, messages, Decoding(**values), limits)
        return [event async for event in stream]

    events = asyncio.run(listen())
    assert isinstance(events[-1], Done | Failed)
    assert all(isinstance(event, Delta) for event in events[:-1])
    assert {event.column for event in events} == {"left"}  # type: ignore[union-attr]
    return events


def said(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def failure(events: list[Event]) -> Failed:
    assert isinstance(events[-1], Failed)
    return events[-1]


def test_an_answer_comes_word_by_word(server: OpenAiServer) -> None:
    events = told(server, temperature=0.5, top_p=0.8, seed=4, max_new_tokens=30)
    assert [event.text for event in events if isinstance(event, Delta)] == ["It", " is", " a", " red", " circle."]
    assert events[-1] == Done("left", "stop", 10), "tokens as the server counts them"
    body = server.asked[0]
    assert (body["temperature"], body["top_p"], body["seed"], body["max_tokens"]) == (0.5, 0.8, 4, 30)
    assert body["stream"] is True
    server.usage = False
    assert told(server)[-1] == Done("left", "stop", 5)
    assert told(server, max_new_tokens=3)[-1] == Done("left", "length", 3)


def test_a_conversation_goes_out_with_its_images_and_system_prompt(server: OpenAiServer) -> None:
    image = {"type": "image", "data": base64.b64encode(png()).decode()}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [image, {"type": "text", "text": "what?"}, image]},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
        {"role": "user", "content": [{"type": "text", "text": "why?"}, {"type": "text", "text": "and where?"}]},
    ]
    told(server, messages=messages)
    sent = server.asked[0]["messages"]
    assert [one["role"] for one in sent] == ["system", "user", "assistant", "user"]
    assert [one["type"] for one in sent[1]["content"]] == ["image_url", "text", "image_url"]
    assert [one["content"] for one in (sent[0], sent[2], sent[3])] == ["Be brief.", "Red.", "why?\nand where?"]


def test_the_stream_is_told_while_it_comes(server: OpenAiServer) -> None:
    """The first word is there while the server waits before the second."""
    server.script("pause")

    async def first() -> Event:
        stream = stream_outside(settings_of(server), "left", LLAVA, QUESTION, Decoding(), QUICK)
        async with aclosing(stream) as events:
            return await anext(events)

    assert asyncio.run(first()) == Delta("left", "It")


@pytest.mark.parametrize(
    ("how", "kind"),
    [("close", "pause"), ("close", "endless"), ("cancel", "pause"), ("cancel", "hang"), ("cancel", "endless")],
)
def test_who_leaves_closes_the_connection(
    server: OpenAiServer, how: str, kind: str, wait_for: Callable[..., None]
) -> None:
    server.script(Fault(kind))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)  # goes on, so that nothing is closed by its end alone
    thread.start()

    async def leave() -> None:
        decoding = Decoding(max_new_tokens=4000)
        stream = stream_outside(settings_of(server), "left", LLAVA, QUESTION, decoding, Limits(900, 900, 900))
        if kind != "hang":
            await anext(stream)
        if how == "close":
            await stream.aclose()
            return
        listening = asyncio.ensure_future(_drain(stream))
        while not server.at_once:
            await asyncio.sleep(0.01)
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listening

    try:
        asyncio.run_coroutine_threadsafe(leave(), loop).result(30)
        wait_for(lambda: server.left == [kind], "the server sees that nobody listens", 20)
        wait_for(lambda: server.at_once == 0, "it has stopped", 20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("raw", body="<html><h1>hello", content_type="text/html"), "a web page instead of an answer"),
        (Fault("raw", body="<html><h1>hello"), "a stream without an answer (a web page)"),
        (
            Fault("raw", body="good day", content_type="text/plain"),
            "something that is no stream of events (good day)",
        ),
        (Fault("raw", body=b"\x00\xff\xfe" * 50, content_type="application/octet-stream"), "no stream of events"),
        (Fault("raw", body=""), "nothing at all"),
        (Fault("raw", body="{}", content_type="application/json"), "JSON without choices"),
        (Fault("raw", body="[]", content_type="application/json"), "JSON of another shape"),
        (Fault("raw", body="data: 3", content_type="application/json"), "what is no JSON"),
        (Fault("raw", body=b'{"a":"\xff"}', content_type="application/json"), "text that is not UTF-8"),
        (Fault("events", body=[b"{broken"]), "what is no JSON"),
        (Fault("events", body=[b"[" * 100_000]), "what is no JSON"),
        (Fault("events", body=[b"7" * 10_000]), "what is no JSON"),
        (Fault("events", body=[[]]), "JSON of another shape"),
        (Fault("events", body=[{"object": "chunk"}]), "JSON without choices"),
        (Fault("events", body=[{"choices": {"delta": 3}}]), "JSON without choices"),
        (Fault("events", body=[{"choices": ["word"]}]), "choices of another shape"),
        (Fault("events", body=[{"choices": [{"delta": "word"}]}]), "choices of another shape"),
        (Fault("events", body=[{"choices": [{"delta": {"content": 3}}]}]), "choices of another shape"),
        (Fault("events", body=[{"choices": [{"delta": {}, "finish_reason": 3}]}]), "choices of another shape"),
        (Fault("events", body=[{"choices": []}]), "a stream without an answer"),
        (Fault("events", body=[]), "a stream without an answer"),
        (Fault("events", body=[b'{"choices": [{"delta": {"content": "\xc3\x28"}}]}']), "text that is not UTF-8"),
        (Fault("raw", body="x", headers={"content-encoding": "gzip"}), "something compressed"),
    ],
)
def test_garbage_is_one_clear_failure(server: OpenAiServer, fault: Fault, words: str) -> None:
    server.script(fault)
    found = failure(told(server))
    assert found.text.startswith("The endpoint 'office' answers with ")
    assert words in found.text
    assert "PLUMB_ENDPOINTS" in found.text, "the remedy"
    assert str(server.port) not in found.text
    assert len(found.text) < 700


def test_garbage_after_a_word_keeps_the_word(server: OpenAiServer) -> None:
    good = {"choices": [{"delta": {"content": "Red"}}]}
    server.script(Fault("events", body=[good, b"{broken"]))
    events = told(server)
    assert said(events) == "Red"
    assert "what is no JSON" in failure(events).text


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            {"error": {"message": "CUDA out of memory", "code": 500}},
            "a fault of its own at the moment (500: CUDA out",
        ),
        ({"error": "out of luck"}, "a fault of its own at the moment (500: out of luck)"),
        ({"error": {"message": "maximum context length is 9"}}, "finds the conversation too long"),
    ],
)
def test_an_error_within_the_stream_is_told(server: OpenAiServer, event: Any, words: str) -> None:
    server.script(Fault("events", body=[{"choices": [{"delta": {"content": "Red"}}]}, event]))
    events = told(server)
    assert said(events) == "Red"
    assert words in failure(events).text
    assert failure(events).code == ("too long" if "too long" in words else "")


@pytest.mark.parametrize(
    ("fault", "words", "code"),
    [
        (Fault("status", 502, "<html>Bad Gateway"), "a fault of its own at the moment (502: a web page)", ""),
        (
            Fault("status", 429, {"error": {"message": "slowly"}}),
            "asked too often at the moment (429: slowly)",
            "",
        ),
        (Fault("status", 413, "<html>"), "too long (413: a web page). Leave out the oldest image", "too long"),
        (
            Fault("status", 400, {"message": "maximum context length is 9"}),
            "Leave out the oldest image",
            "too long",
        ),
        (Fault("status", 400, {"message": "At most 1 image(s)"}), "refuses the request (400: At most 1", ""),
        (Fault("status", 302, "", headers={"location": "http://127.0.0.1:9/x"}), "sends elsewhere (302)", ""),
        ("cut", "broke off before the end of the answer", ""),
        ("short", "broke off before the end of the answer (the stream ended in mid-answer)", ""),
    ],
)
def test_statuses_and_broken_connections(server: OpenAiServer, fault: Fault | str, words: str, code: str) -> None:
    server.script(fault)
    found = failure(told(server))
    assert "The endpoint 'office'" in found.text
    assert words in found.text
    assert found.code == code
    assert len(server.asked) == 1, "a person who looks on tries again at will"


def test_a_key_that_is_refused_names_its_variable(server: OpenAiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "sk-another"
    monkeypatch.setenv("PLUMB_ENDPOINT_KEY_OFFICE", KEY)
    server.script(Fault("status", 401, {"error": {"message": f"{KEY} is wrong"}}))
    found = failure(told(server))
    assert "does not accept the key (401: Invalid API key: •••)" in found.text
    assert "Set PLUMB_ENDPOINT_KEY_OFFICE in the environment" in found.text
    server.key = KEY
    assert "(401: ••• is wrong)" in failure(told(server)).text
    assert said(told(server)) == "It is a red circle."
    monkeypatch.setenv("PLUMB_ENDPOINT_KEY_OFFICE", "sk with blanks")
    assert "PLUMB_ENDPOINT_KEY_OFFICE holds a character" in failure(told(server)).text


def test_unknown_models_and_endpoints(server: OpenAiServer) -> None:
    found = failure(told(server, Speaker("gone@office")))
    assert "does not know the model 'gone'" in found.text
    assert "It serves llava, llava-dpo; choose one of these." in found.text
    found = failure(told(server, Speaker("llava@lab")))
    assert "There is no endpoint called 'lab'. There are office;" in found.text
    assert "PLUMB_ENDPOINTS" in found.text


def test_nobody_there() -> None:
    with OpenAiServer() as gone:
        pass
    found = failure(told(gone))
    assert "The endpoint 'office' cannot be reached" in found.text
    assert str(gone.port) not in found.text


def test_a_name_that_nobody_knows_is_told_of_without_it() -> None:
    settings = Settings(devices=("cpu",), endpoints={"office": "http://nowhere.invalid:1234/v1"})

    async def listen() -> list[Event]:
        return [one async for one in stream_outside(settings, "left", LLAVA, QUESTION, Decoding(), QUICK)]

    found = failure(asyncio.run(listen()))
    assert "'office' cannot be reached" in found.text
    assert "nowhere.invalid" not in found.text


@pytest.mark.parametrize(
    ("kind", "limits", "words"),
    [
        ("hang", Limits(0.2, 900, 900), "did not begin to answer within 0.2 s"),
        ("hang open", Limits(0.2, 900, 900), "did not begin to answer within 0.2 s"),
        ("pause", Limits(900, 0.2, 900), "said nothing more within 0.2 s"),
        ("empty endless", Limits(900, 900, 0.2), "came to no end: 0.2 s have gone by"),
    ],
)
def test_slow_ones_are_given_up(server: OpenAiServer, kind: str, limits: Limits, words: str) -> None:
    server.script(kind)
    assert words in failure(told(server, limits=limits)).text


def test_a_model_that_never_ends_is_cut_at_the_longest_answer(server: OpenAiServer) -> None:
    server.script("endless")
    events = told(server, max_new_tokens=7)
    assert said(events) == "again " * 7
    assert events[-1] == Done("left", "length", 7)


def test_an_answer_of_single_characters_is_not_cut_for_its_pieces(server: OpenAiServer) -> None:
    events = [{"choices": [{"delta": {"content": one}}]} for one in "twenty characters!!!"]
    server.script(Fault("events", body=events))
    found = told(server, max_new_tokens=6)
    assert said(found) == "twenty characters!!!"
    assert found[-1] == Done("left", "stop", 20)


def test_pieces_of_any_size_are_cut_by_their_bytes(server: OpenAiServer) -> None:
    server.script(Fault("endless", body="x" * 5000))
    events = told(server, max_new_tokens=20)
    assert len(said(events)) == 20 * 64
    assert isinstance(events[-1], Done)
    assert events[-1].finish == "length"


@pytest.mark.parametrize("kind", ["empty endless", "no newline"])
@pytest.mark.slow
def test_bytes_without_an_answer_have_an_end(server: OpenAiServer, kind: str) -> None:
    server.script(kind)
    assert "came to no end: 8 MiB came without it" in failure(told(server)).text


def test_options_that_are_refused_are_left_out(server: OpenAiServer) -> None:
    server.script(default=Fault("unknown option", body="stream_options"))
    assert told(server)[-1] == Done("left", "stop", 5)
    assert ["stream_options" in body for body in server.asked] == [True, False]


def test_a_server_that_does_not_stream_is_understood(server: OpenAiServer) -> None:
    server.script("plain")
    events = told(server)
    assert (said(events), events[-1]) == ("It is a red circle.", Done("left", "stop", 7))


def test_a_filter_is_told(server: OpenAiServer) -> None:
    server.script(Fault("events", body=[{"choices": [{"delta": {}, "finish_reason": "content_filter"}]}]))
    assert "its filter blocked the answer" in failure(told(server)).text


def test_a_round_of_outside_columns_is_stored_under_their_names(
    world: World, server: OpenAiServer, tmp_path: Path
) -> None:
    """Through the chat itself: question, image, two models of one endpoint, and no process of ours."""
    (tmp_path / "red.png").write_bytes(png())
    server.answer = lambda body: f"I am {body['model']}."
    context = Context(world.settings.model_copy(update={"endpoints": {"office": server.url}}))
    cast = Cast.read("demo", "llava@office", "llava-dpo@office")

    async def play() -> View:
        source = send(
            context, Stops(), "s", USER, None, "what?", [str(tmp_path / "red.png")], cast, Decoding().model_dump()
        )
        return [view async for view in source][-1]

    view = asyncio.run(play())
    assert not view.running
    assert view.conversation is not None
    turns = own_conversation(world.db, view.conversation, USER).turns
    assert [(turn.model, turn.adapter_id, turn.finish, text_of(turn.content)) for turn in turns[1:]] == [
        ("llava@office", None, "stop", "I am llava."),
        ("llava-dpo@office", None, "stop", "I am llava-dpo."),
    ]
    assert {one.body["messages"][0]["content"][0]["type"] for one in server.taken} == {"image_url"}
    assert list_jobs(world.db) == []


def test_many_columns_at_once_hear_each_their_own(server: OpenAiServer) -> None:
    server.answer = lambda body: " ".join([body["messages"][-1]["content"]] * 20)
    server.delay = 0.002

    async def listen(number: int) -> list[Event]:
        messages = [{"role": "user", "content": f"w{number}"}]
        stream = stream_outside(settings_of(server), f"c{number}", LLAVA, messages, Decoding(), QUICK)
        return [event async for event in stream]

    async def all_of_them() -> list[list[Event]]:
        return await asyncio.gather(*(listen(number) for number in range(8)))

    for number, events in enumerate(asyncio.run(all_of_them())):
        assert said(events) == " ".join([f"w{number}"] * 20)
    assert server.most_at_once > 1
