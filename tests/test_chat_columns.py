"""Two and three columns of one round: own ones and endpoints' together, stopped one by one, faults kept apart."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from chat_server import USER, Refuses, Script, Stopped, ask, everything, says, serving, stored, texts, trained
from factories import World, png
from storage import jobs as store
from storage.errors import NotFound, UserError
from storage.images import ensure_image
from workbench import chat_client
from workbench.chat_client import Delta, Done, Event, Failed
from workbench.chat_desk import Cast, Decoding, View, settings_of
from workbench.chat_history import history, left_out
from workbench.chat_round import Stops, answer_last, send
from workbench.chat_streams import Halt, paced, until_stopped
from workbench.context import Context

pytestmark = pytest.mark.usefixtures("no_supervisor")

Speak = Callable[[str], AsyncGenerator[Event]]
ALL_OUTSIDE = Cast.read("demo", "llava@office", "llava-dpo@office")
MIXED = Cast.read("demo", "base", "llava@office")


class Endpoint:
    """Stands in for workbench/outside_chat.py."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, list[dict[str, Any]], Decoding]] = []
        self.closed: list[str] = []
        self.speak: Speak = self.says("Far away.")

    def says(self, text: str) -> Speak:
        async def speak(column: str) -> AsyncGenerator[Event]:
            for number, word in enumerate(text.split(" ")):
                yield Delta(column, (" " if number else "") + word)
            yield Done(column, "stop", len(text.split(" ")))

        return speak

    async def stream_outside(
        self, settings: Any, column: str, speaker: Any, messages: Any, decoding: Decoding
    ) -> AsyncGenerator[Event]:
        self.asked.append((column, speaker.model, messages, decoding))
        try:
            async with aclosing(self.speak(column)) as events:
                async for event in events:
                    yield event
        finally:
            self.closed.append(column)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    made = Endpoint()
    fake = SimpleNamespace(stream_outside=made.stream_outside)
    monkeypatch.setitem(sys.modules, "workbench.outside_chat", fake)
    return made


def playing(
    context: Context,
    cast: Cast,
    react: Callable[[Stops, View], None],
    conversation: int | None = None,
    **values: Any,
) -> list[View]:
    """Send a message and react to every view."""

    async def play() -> list[View]:
        stops, views = Stops(), []
        settings = {**Decoding().model_dump(), **values}
        source = send(context, stops, "s", USER, conversation, "What?", (), cast, settings)
        async with aclosing(source) as open_views:
            async for view in open_views:
                views.append(view)
                react(stops, view)
        return views

    return asyncio.run(play())


def test_three_columns_answer_and_each_keeps_its_place(world: World, context: Context) -> None:
    adapter = trained(world)
    cast = Cast.of("demo", None, adapter, None)
    with serving(context, says("Red.", "Round.", "A disc."), says("a", "b", "c"), adapters=(adapter,)) as server:
        last = ask(context, cast=cast)[-1]
        ask(context, "Sure?", conversation=last.conversation, cast=cast)
    assert [texts(last, column)[-1] for column in range(3)] == ["Red.", "Round.", "A disc."]
    assert "left: 1 token · middle: 1 token · right: 2 tokens" in last.status
    assert last.answered == (True, True, True)
    assert last.live == last.cut == (False, False, False)
    assert [column["id"] for column in server.requests[0]["columns"]] == ["left", "middle", "right"]
    assert server.requests[1]["columns"][1]["messages"][1]["content"][0]["text"] == "Round."
    assert [turn.column_number for turn in stored(world).turns] == [None, 0, 1, 2, None, 0, 1, 2]
    assert settings_of(stored(world))["columns"] == ["base", str(adapter), "base"]


def test_a_conversation_keeps_the_number_of_its_columns(world: World, context: Context) -> None:
    with serving(context, says("Red.", "Round.")):
        number = ask(context)[-1].conversation
    with pytest.raises(UserError, match="has 2 columns, not 3"):
        ask(context, conversation=number, cast=Cast.of("demo", None, None, None))
    assert len(stored(world).turns) == 3


def test_one_column_is_stopped_and_the_others_go_on(world: World, context: Context) -> None:
    start = [{"column": side, "delta": side} for side in ("left", "middle", "right")]
    script: Script = [
        *start,
        Stopped("middle"),
        {"column": "middle", "done": "stopped", "tokens": 1},
        {"column": "left", "delta": " more"},
        *({"column": side, "done": "stop", "tokens": 2} for side in ("left", "right")),
    ]
    seen: list[tuple[bool, ...]] = []

    def react(stops: Stops, view: View) -> None:
        seen.append(view.live)
        if "middle" in texts(view, 1)[-1] and not any("(stopped)" in text for text in texts(view, 1)):
            stops.stop("another session", "left")
            stops.stop("s", "middle")

    with serving(context, script) as server:
        last = playing(context, Cast.of("demo", None, None, None), react)[-1]
        assert {stop["request"] for stop in server.stops} == {server.requests[0]["request"]}
    assert [turn.finish for turn in stored(world).turns[1:]] == ["stop", "stopped", "stop"]
    assert texts(last, 0)[-1] == "left more"
    assert seen[0] == (True, True, True)
    assert last.cut == (False, True, False)
    assert last.answered == (True, True, True)


def test_a_column_that_is_stopped_before_the_model_is_found_is_not_asked(world: World, context: Context) -> None:
    from chat_server import ChatServer, set_running

    with ChatServer() as server:
        server.scripts.append(says("Red.", "x")[::2])

        def react(stops: Stops, view: View) -> None:
            if "queue" in view.status:
                stops.stop("s", "right")
            if view.live == (True, False):
                (job,) = store.list_jobs(world.db, kind="serve")
                if job.port is None:
                    set_running(context, job.id, server.port)

        last = playing(context, Cast(), react)[-1]
    assert [column["id"] for column in server.requests[0]["columns"]] == ["left"]
    assert [(turn.content[0]["text"], turn.finish) for turn in stored(world).turns[1:]] == [
        ("Red.", "stop"),
        ("", "stopped"),
    ]
    assert last.cut == (False, False), "nothing was said that could be gone on with"


def test_all_columns_stopped_one_by_one_end_the_round(world: World, context: Context, endpoint: Endpoint) -> None:
    async def endless(column: str) -> AsyncGenerator[Event]:
        yield Delta(column, "Far")
        await asyncio.sleep(60)

    endpoint.speak = endless

    def react(stops: Stops, view: View) -> None:
        if "Far" in texts(view, 0)[-1] and "Far" in texts(view, 1)[-1]:
            stops.stop("s", "left")
            stops.stop("s", "right")

    last = playing(context, ALL_OUTSIDE, react)[-1]
    assert [turn.finish for turn in stored(world).turns[1:]] == ["stopped", "stopped"]
    assert endpoint.closed == ["left", "right"]
    assert last.cut == (False, False), "an endpoint can't go on where it was cut"


def test_endpoints_alone_need_no_process(world: World, context: Context, endpoint: Endpoint) -> None:
    last = ask(context, cast=ALL_OUTSIDE, system="Be brief.", temperature=0.5)[-1]
    assert texts(last, 0)[-1] == texts(last, 1)[-1] == "Far away."
    assert store.list_jobs(world.db, kind="serve") == []
    assert [(column, model) for column, model, _, _ in endpoint.asked] == [
        ("left", "llava@office"),
        ("right", "llava-dpo@office"),
    ]
    messages, decoding = endpoint.asked[0][2:]
    assert [message["role"] for message in messages] == ["system", "user"]
    assert decoding.temperature == 0.5
    assert [(turn.model, turn.adapter_id) for turn in stored(world).turns[1:]] == [
        ("llava@office", None),
        ("llava-dpo@office", None),
    ]


def test_an_unknown_base_stands_in_nobodys_way_where_all_are_outside(context: Context, endpoint: Endpoint) -> None:
    assert texts(ask(context, cast=Cast("gone", ALL_OUTSIDE.speakers))[-1], 0)[-1] == "Far away."


def test_an_endpoint_speaks_beside_the_process(world: World, context: Context, endpoint: Endpoint) -> None:
    script = [event for event in says("Here.", "x") if event["column"] == "left"]
    with serving(context, script) as server:
        last = ask(context, cast=MIXED)[-1]
    assert [column["id"] for column in server.requests[0]["columns"]] == ["left"]
    assert [texts(last, column)[-1] for column in range(2)] == ["Here.", "Far away."]
    assert cast_spelt(world) == ["base", "llava@office"]


def cast_spelt(world: World) -> list[str]:
    from storage.speakers import speakers_of

    return [speaker.spelling for speaker in speakers_of(stored(world))]


def test_an_endpoint_answers_while_the_process_loads(world: World, context: Context, endpoint: Endpoint) -> None:
    def react(stops: Stops, view: View) -> None:
        if "Far away." in texts(view, 1)[-1] and "queue" in view.status:
            assert view.live == (True, False)
            stops.stop("s")

    last = playing(context, MIXED, react)[-1]
    assert [turn.finish for turn in stored(world).turns[1:]] == ["stopped", "stop"]
    assert last.answered == (True, True)


@pytest.mark.parametrize("raises", [False, True])
def test_a_fault_of_an_endpoint_ends_its_column_alone(
    world: World, context: Context, endpoint: Endpoint, raises: bool
) -> None:
    async def speak(column: str) -> AsyncGenerator[Event]:
        yield Delta(column, "Fa")
        if raises:
            raise NotFound("The endpoint “office” is down.")
        yield Failed("The endpoint “office” is down.", column)

    endpoint.speak = speak
    script = [event for event in says("Here.", "x") if event["column"] == "left"]
    with serving(context, script):
        last = ask(context, cast=MIXED)[-1]
    assert "Right: The endpoint “office” is down." in last.status
    assert [(turn.content[0]["text"], turn.finish) for turn in stored(world).turns[1:]] == [
        ("Here.", "stop"),
        ("Fa", "failed"),
    ]
    assert not last.running


def test_a_fault_of_the_process_leaves_the_endpoint_alone(
    world: World, context: Context, endpoint: Endpoint
) -> None:
    with serving(context, [{"error": "The device is out of memory."}]):
        last = ask(context, cast=MIXED)[-1]
    assert "Left: The device is out of memory." in last.status
    assert [(turn.content[0]["text"], turn.finish) for turn in stored(world).turns[1:]] == [
        ("", "failed"),
        ("Far away.", "stop"),
    ]


def test_an_endpoint_that_ends_without_an_end_has_failed(
    world: World, context: Context, endpoint: Endpoint
) -> None:
    async def speak(column: str) -> AsyncGenerator[Event]:
        yield Delta(column, "Fa")

    endpoint.speak = speak
    assert "ended without an end" in ask(context, cast=ALL_OUTSIDE)[-1].status


def test_a_closed_tab_ends_three_columns(world: World, context: Context, endpoint: Endpoint) -> None:
    async def endless(column: str) -> AsyncGenerator[Event]:
        yield Delta(column, "Far")
        await asyncio.sleep(60)

    async def play() -> None:
        cast = Cast.read("demo", "base", "base", "llava@office")
        source = send(context, Stops(), "s", USER, None, "What?", (), cast, Decoding().model_dump())
        async for view in source:
            if "Half" in texts(view, 1)[-1] and "Far" in texts(view, 2)[-1]:
                break
        await source.aclose()

    endpoint.speak = endless
    with serving(context, [{"column": "middle", "delta": "Half"}, 30.0]) as server:
        asyncio.run(play())
        assert server.left.wait(10), "the connection stayed open"
    assert endpoint.closed == ["right"]
    assert [(turn.content[0]["text"], turn.finish) for turn in stored(world).turns[1:]] == [
        ("", "stopped"),
        ("Half", "stopped"),
        ("Far", "stopped"),
    ]


def test_a_blind_conversation_keeps_the_names_until_the_vote(world: World, context: Context) -> None:
    apart = {"column": "right", "apart": "it trained the projector too"}
    fault = {"column": "right", "error": "Adapter 5 is not loaded here."}
    scripts = [[apart, *says("Red.", "Round.")], [*says("Red.", "x")[::2], fault], [apart, *says("a", "b")]]
    scripts.append(scripts[-1])
    with serving(context, *scripts):
        first = ask(context, blind=True)
        number = first[-1].conversation
        assert not any("right" in view.status for view in first[:-1])
        failed = ask(context, conversation=number)[-1]
        assert "Adapter 5" not in failed.status
        assert "One column could not answer" in failed.status
        assert number is not None
        third = ask(context, conversation=number)
        assert not any("right one" in view.status for view in third)
        one, other = stored(world).turns[-2:]
        world.db.conn.execute(
            "INSERT INTO votes (left_turn_id, right_turn_id, verdict, user, created_at)"
            " VALUES (?, ?, 'tie', ?, '')",
            [one.id, other.id, USER],
        )
        fourth = ask(context, conversation=number)
    assert any("The right one answers after the other: it trained" in view.status for view in fourth)


def test_the_place_in_line_is_told(context: Context) -> None:
    go_on = threading.Event()

    def react(stops: Stops, view: View) -> None:
        if "You are number 3 in line." in view.status:
            go_on.set()

    with serving(context, [{"waiting": 3}, go_on, *says("Red.", "Round.")]) as server:
        last = playing(context, Cast(), react)[-1]
        assert not server.late, "the place was not told"
    assert "in line" not in last.status


def test_a_user_has_one_name_in_line_which_is_nobodys(context: Context) -> None:
    with serving(context, says("a", "b"), says("a", "b")) as server:
        ask(context)
        ask(context)
    names = {request["user"] for request in server.requests}
    assert names == {chat_client.line_name(USER)}
    assert USER not in json.dumps(server.requests[0]["user"])
    assert chat_client.line_name("bob") != chat_client.line_name(USER)


def test_a_conversation_that_is_too_long_can_leave_out_its_oldest_images(
    world: World, context: Context, tmp_path: Any
) -> None:
    files = []
    for number in range(30):
        file = tmp_path / f"{number}.png"
        file.write_bytes(png((number, 0, 0)))
        files.append(str(file))
    text = "The conversation has 9000 tokens; with answers of 128 it exceeds the model's 8192."
    with serving(context, [{"error": text, "code": "too long"}], says("Red.", "Red."), says("a", "b")) as server:
        first = ask(context, files=tuple(files))[-1]
        assert first.too_long
        assert first.unanswered
        assert first.images == 30
        assert "The conversation has 9000 tokens" in first.status
        assert first.conversation is not None
        decoding = Decoding(without_images=2)
        source = answer_last(context, Stops(), "s", USER, first.conversation, Cast(), decoding)
        second = asyncio.run(everything(source))[-1]
        assert not second.too_long
        assert second.images == 28
        assert "Left out: images 1 to 2 of 30 (in question 1)." in second.status
        assert settings_of(stored(world))["without_images"] == 2, "as it was asked in the end"
        ask(context, "And?", conversation=first.conversation, without_images=30)
    parts = server.requests[1]["columns"][1]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image"] * 28 + ["text"]
    assert [part["type"] for part in server.requests[2]["columns"][0]["messages"][0]["content"]] == ["text"]


def test_a_new_conversation_leaves_nothing_out(context: Context, tmp_path: Any) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(png())
    with serving(context, says("a", "b")) as server:
        last = ask(context, files=(str(file),), without_images=3)[-1]
    assert server.requests[0]["columns"][0]["messages"][0]["content"][0]["type"] == "image"
    assert "Left out" not in last.status


def test_a_question_whose_only_image_is_left_out_keeps_its_place(world: World, context: Context) -> None:
    from storage.chats import add_turn, get_conversation, start_conversation

    image = ensure_image(world.db, world.folder, png())
    number = start_conversation(world.db, USER, {"model": "demo"})
    add_turn(world.db, number, 0, "user", [{"type": "image", "image": image.sha256}])
    add_turn(world.db, number, 1, "assistant", [{"type": "text", "text": "Red."}], column_number=0, model="demo")
    add_turn(world.db, number, 2, "user", [{"type": "text", "text": "Sure?"}])
    turns = get_conversation(world.db, number, USER).turns
    messages = history(context, turns, 0, without_images=1)
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[0]["content"] == [{"type": "text", "text": "(image)"}]
    assert left_out(turns, 5) == "Left out: image 1 of 1 (in question 1)."
    assert left_out(turns, 0) == ""


def test_a_message_that_no_process_takes_is_not_sent(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(chat_client, "LARGEST_BODY", 300)
    with serving(context, says("a", "b")) as server:
        last = ask(context, "What? " * 100)[-1]
    assert server.requests == []
    assert last.too_long
    assert "at most 0 are sent" in last.status


def test_a_message_that_the_process_finds_too_large_can_leave_out_images(context: Context) -> None:
    with serving(context, [Refuses(413, "Send smaller images.")], [Refuses(422, "No such thing.")]):
        large, other = ask(context)[-1], ask(context)[-1]
    assert "Send smaller images." in large.status
    assert (large.too_long, other.too_long) == (True, False)
    assert "No such thing." in other.status


def test_what_is_sent_at_most_is_what_the_process_takes() -> None:
    from jobs.gpu import serve

    assert chat_client.LARGEST_BODY == serve.LARGEST_BODY


def test_an_adapter_that_is_deleted_meanwhile_is_named_with_its_column(world: World, context: Context) -> None:
    from storage.adapters import delete_adapter

    adapter = trained(world)
    cast = Cast.of("demo", None, adapter)
    with serving(context, [{"error": "no"}], adapters=()):
        world.db.conn.execute("UPDATE jobs SET config = json_set(config, '$.adapters', json_array(?))", [adapter])
        last = ask(context, cast=cast)[-1]
    assert last.unanswered
    for job in store.list_jobs(world.db, kind="serve"):
        world.db.conn.execute("UPDATE jobs SET status = 'done' WHERE id = ?", [job.id])
    delete_adapter(world.db, world.folder, adapter)
    assert last.conversation is not None
    with pytest.raises(
        NotFound, match=rf"Right column: There is no adapter {adapter}.*choose the base or another"
    ):
        asyncio.run(everything(answer_last(context, Stops(), "s", USER, last.conversation, cast, Decoding())))
    with pytest.raises(NotFound, match=f"There is no adapter {adapter}"):
        ask(context, conversation=last.conversation, cast=cast)
    assert settings_of(stored(world))["columns"] == ["base", str(adapter)], "who was asked is still told"
    with serving(context, says("Red.", "Round.")):
        other = answer_last(context, Stops(), "s", USER, last.conversation, Cast(), Decoding())
        assert texts(asyncio.run(everything(other))[-1], 1)[-1] == "Round."


def test_a_stop_is_heard_at_once() -> None:
    """Not only when the stream has something to say, or a pause is over."""

    async def silent() -> AsyncGenerator[Event]:
        await asyncio.sleep(60)
        yield Delta("left", "never")

    async def play() -> list[Any]:
        halt = Halt()
        halt.ask("right")
        told = []
        asyncio.get_running_loop().call_later(0.05, halt.ask, "left")
        async with aclosing(paced([until_stopped(silent(), "left", halt)], halt)) as frames:
            async for frame in frames:
                told += frame
        return told

    assert asyncio.run(asyncio.wait_for(play(), 30)) == [Done("left", "stopped", 0)]


def test_one_stream_of_many_ends_with_the_last_and_raises_what_was_raised() -> None:
    async def speak(side: str, words: int) -> AsyncGenerator[Event]:
        for _ in range(words):
            yield Delta(side, ".")
            await asyncio.sleep(0)
        if side == "bad":
            raise NotFound("gone")

    async def play(*sides: str) -> list[Any]:
        told: list[Any] = []
        async with aclosing(paced([speak(side, 3) for side in sides], Halt())) as frames:
            async for frame in frames:
                told += frame
        return told

    assert len(asyncio.run(play("left", "middle", "right"))) == 9
    with pytest.raises(NotFound, match="gone"):
        asyncio.run(play("left", "bad"))
