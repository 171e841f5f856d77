"""Rounds of the chat that meet one another, a busy database, or a lost image: nothing said is lost or mixed up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chat_server import (
    USER,
    ChatServer,
    Script,
    add_serve_job,
    ask,
    everything,
    says,
    serving,
    set_running,
    stored,
    texts,
    trained,
)
from factories import World, png
from storage import chat_edits
from storage import jobs as store
from storage.chat_edits import Answer
from storage.chats import add_turn, list_conversations
from storage.errors import Conflict, DatabaseBusy, NotFound
from storage.lifecycle import JobStatus
from workbench import chat_client, chat_round, chat_wiring
from workbench.chat_client import Waiting, ensure_process
from workbench.chat_desk import Cast, Decoding, View, read_open_question, store_answers
from workbench.chat_holds import Hold, is_wanted_gone, rounds_on
from workbench.chat_parts import EMPTY
from workbench.chat_round import Stops, answer_last, send
from workbench.context import Context
from workbench.pages import chat as page

pytestmark = pytest.mark.usefixtures("no_supervisor")


def test_answers_are_stored_off_the_event_loop(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[bool] = []

    async def play() -> None:
        loop = asyncio.get_running_loop()

        def slow(*arguments: Any) -> Any:
            ticked = threading.Event()
            loop.call_soon_threadsafe(ticked.set)
            alive.append(ticked.wait(5))  # never, if the loop itself is in here
            return store_answers(*arguments)

        monkeypatch.setattr(chat_round, "store_answers", slow)
        await everything(send(context, Stops(), "s", USER, None, "What?", (), Cast(), Decoding().model_dump()))

    with serving(context, says("Red.", "Round.")):
        asyncio.run(play())
    assert alive == [True]
    assert len(stored(world).turns) == 3


@pytest.mark.parametrize(("refusals", "kept"), [(2, True), (99, False)])
def test_a_busy_database_is_tried_again_and_both_answers_are_stored_or_none(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch, refusals: int, kept: bool
) -> None:
    refused: list[int] = []

    def busy(*arguments: Any, **named: Any) -> int:
        if named.get("column_number") == 1 and len(refused) < refusals:
            refused.append(1)
            raise DatabaseBusy("The database is held by another process.")
        return add_turn(*arguments, **named)

    monkeypatch.setattr(chat_edits, "add_turn", busy)
    with serving(context, says("Red.", "Round.")):
        last = ask(context)[-1]
    assert not last.running
    assert texts(last, 1)[-1] == "Round."
    assert last.unanswered is not kept
    assert ("could not be stored" in last.status) is not kept
    assert [turn.column_number for turn in stored(world).turns] == ([None, 0, 1] if kept else [None])


def test_a_question_waits_for_the_answer_before_it(world: World, context: Context) -> None:
    async def play() -> None:
        stops = Stops()
        values = Decoding().model_dump()
        second: asyncio.Task[list[View]] | None = None
        async with aclosing(send(context, stops, "s", USER, None, "One", (), Cast(), values)) as views:
            async for view in views:
                if second is None and any("Half" in text for text in texts(view, 0)):
                    source = send(context, stops, "s", USER, view.conversation, "Two", (), Cast(), values)
                    second = asyncio.create_task(everything(source))
        assert second is not None
        await second

    script: Script = [{"column": "left", "delta": "Half"}, threading.Event()]
    with serving(context, script, says("Red.", "Round.")) as server:
        asyncio.run(play())
    said = [(turn.content[0]["text"], turn.column_number, turn.finish) for turn in stored(world).turns]
    assert said == [
        ("One", None, None),
        ("Half", 0, "stopped"),
        ("", 1, "stopped"),
        ("Two", None, None),
        ("Red.", 0, "stop"),
        ("Round.", 1, "stop"),
    ]
    ids = [turn.id for turn in stored(world).turns]
    assert ids == sorted(ids), "the second question was stored before the first one's answers"
    assert [message["role"] for message in server.requests[1]["columns"][0]["messages"]] == [
        "user",
        "assistant",
        "user",
    ]


def said(*texts: str) -> list[Answer]:
    return [Answer(number, "demo", None, text, "stop") for number, text in enumerate(texts)]


def test_an_answer_keeps_its_place_before_a_question_from_another_tab(world: World, context: Context) -> None:
    with serving(context, [{"error": "no"}], [{"error": "no"}]):
        first = ask(context, "One")[-1].conversation
        assert first is not None
        open_question = read_open_question(context, USER, first, Cast())
        ask(context, "Two", conversation=first)
    store_answers(context, open_question, {}, said("Red.", "Round."))
    assert [turn.content[0]["text"] for turn in stored(world).turns] == ["One", "Red.", "Round.", "Two"]
    with pytest.raises(Conflict, match="another tab first"):
        store_answers(context, open_question, {}, said("Blue.", "Flat."))
    assert len(stored(world).turns) == 4


def test_an_answered_question_is_not_answered_again(world: World, context: Context) -> None:
    with serving(context, says("Red.", "Round."), says("Blue.", "Flat.")):
        number = ask(context)[-1].conversation
        assert number is not None
        with pytest.raises(Conflict, match="has its answer already"):
            asyncio.run(everything(answer_last(context, Stops(), "s", USER, number, Cast(), Decoding())))
    assert len(stored(world).turns) == 3


def test_a_round_that_cannot_begin_leaves_nothing_to_wait_for(context: Context) -> None:
    stops = Stops()
    with pytest.raises(NotFound):
        asyncio.run(everything(answer_last(context, stops, "s", USER, 99, Cast(), Decoding())))
    assert stops._halts == {}


def test_a_refused_message_leaves_the_running_answer_alone(world: World, context: Context) -> None:
    stops = Stops()
    halt = stops.begin("s")
    with pytest.raises(Exception, match="The message is empty"):
        asyncio.run(everything(send(context, stops, "s", USER, None, " ", (), Cast(), Decoding().model_dump())))
    assert not halt.asked


def test_a_missing_image_file_is_told_and_the_question_stays_open(
    world: World, context: Context, tmp_path: Path
) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(png((200, 0, 0)))
    stops = Stops()
    with serving(context, [{"error": "no"}], says("Red.", "Red.")):
        number = ask(context, files=(str(file),))[-1].conversation
        assert number is not None
        sha256 = stored(world).turns[0].content[0]["image"]
        (found,) = world.folder.images.rglob(f"{sha256}*")
        found.unlink()
        last = asyncio.run(everything(answer_last(context, stops, "s", USER, number, Cast(), Decoding())))[-1]
    assert f"The image {sha256[:12]} is missing; run `python -m storage check`." in last.status
    assert not last.running
    assert last.unanswered
    assert stops._halts == {}


def test_two_first_messages_at_once_start_one_process(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    find_process = chat_client.find_process

    def slow(*arguments: Any) -> Any:
        found = find_process(*arguments)
        try:
            both.wait(1.0)  # both have looked, unless a lock keeps the second one out
        except threading.BrokenBarrierError:
            pass
        return found

    monkeypatch.setattr(chat_client, "find_process", slow)
    holds = [Hold(context.folder), Hold(context.folder)]
    jobs: list[int | Waiting] = []
    threads = [
        threading.Thread(target=lambda hold=hold: jobs.append(ensure_process(context, USER, "demo", [], hold)))
        for hold in holds
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (job,) = store.list_jobs(world.db, kind="serve")
    assert jobs == [job.id, job.id]
    assert job.status is JobStatus.QUEUED
    assert rounds_on(context.folder, job.id) == 2
    for hold in holds:
        with hold:
            pass
    assert rounds_on(context.folder, job.id) == 0


def test_a_process_is_not_replaced_under_an_answer(world: World, context: Context) -> None:
    """Another user picks a new adapter: the page says what it waits for, and the answer is heard to its end."""
    go_on = threading.Event()
    statuses: list[str] = []

    async def second(cast: Cast, held: int) -> list[View]:
        views = []
        source = send(context, Stops(), "bob's", "bob", None, "What?", (), cast, Decoding().model_dump())
        with ChatServer() as server:
            server.scripts.append(says("New.", "New."))
            async with aclosing(source) as open_views:
                async for view in open_views:
                    views.append(view)
                    if "still comes" in view.status:
                        statuses.append(store.get_job(world.db, held).status)
                        go_on.set()
                    newest = store.list_jobs(world.db, kind="serve")[0]
                    if newest.id != held and newest.status is JobStatus.QUEUED:
                        set_running(context, newest.id, server.port)
        return views

    async def play() -> tuple[View, View]:
        other: asyncio.Task[list[View]] | None = None
        last = None
        source = send(context, Stops(), "s", USER, None, "What?", (), Cast(), Decoding().model_dump())
        async with aclosing(source) as views:
            async for last in views:
                if other is None and any("Half" in text for text in texts(last, 0)):
                    held = store.list_jobs(world.db, kind="serve")[0].id
                    other = asyncio.create_task(second(Cast.of("demo", None, trained(world)), held))
        assert other is not None
        assert last is not None
        return last, (await other)[-1]

    script: Script = [{"column": "left", "delta": "Half"}, go_on, *says(" full.", "Round.")]
    with serving(context, script) as server:
        mine, theirs = asyncio.run(play())
        assert not server.late, "the page did not tell what it waits for"
    assert statuses[0] is JobStatus.RUNNING
    assert texts(mine, 0)[-1] == "Half full."
    assert texts(theirs, 1)[-1] == "New."
    old = store.list_jobs(world.db, kind="serve")[-1]
    assert old.status is JobStatus.STOPPING
    assert rounds_on(context.folder, old.id) == 0


def test_a_process_that_is_to_be_replaced_takes_no_new_round(world: World, context: Context) -> None:
    """Else it might never be free."""
    old = add_serve_job(context)
    new_adapter = trained(world)
    with Hold(context.folder) as running, Hold(context.folder) as waiting, Hold(context.folder) as late:
        assert ensure_process(context, USER, "demo", [], running) == old
        assert isinstance(ensure_process(context, "bob", "demo", [new_adapter], waiting), Waiting)
        assert isinstance(ensure_process(context, "eve", "demo", [], late), Waiting)
        running.drop()
        started = ensure_process(context, "eve", "demo", [], late)
        assert started not in (old, late)
        assert ensure_process(context, "bob", "demo", [new_adapter], waiting) == started
    assert not is_wanted_gone(context.folder, old)
    assert store.get_job(world.db, old).status is JobStatus.STOPPED


def test_a_thread_that_comes_late_holds_nothing(context: Context) -> None:
    with Hold(context.folder) as hold:
        pass
    hold.take(1)
    assert rounds_on(context.folder, 1) == 0


def test_a_process_goes_on_where_none_can_be_started(world: World, context: Context) -> None:
    old = add_serve_job(context)
    with Hold(context.folder) as hold, pytest.raises(NotFound):
        ensure_process(context, USER, "demo", [99], hold)
    assert store.get_job(world.db, old).status is JobStatus.QUEUED


def handler(context: Context, name: str) -> Callable[..., Any]:
    built = page.build(context)
    (found,) = [fn.fn for fn in built.fns.values() if fn.fn is not None and fn.fn.__name__ == name]
    checked: Callable[..., Any] | None = found
    assert checked is not None
    return checked


def shown(updates: dict[Any, Any]) -> str:
    """What the page's status line shows after these updates."""
    (status,) = [value for component, value in updates.items() if component.elem_id == "chat-status"]
    return str(status)


def request(**query: str) -> Any:
    return SimpleNamespace(username=USER, session_hash="s", query_params=query)


@pytest.mark.parametrize("name", ["conversation", "adapter"])
@pytest.mark.parametrize("number", ["99999999999999999999", "-1", "x", ""])
def test_an_address_with_an_impossible_number_opens_an_empty_chat(
    world: World, context: Context, name: str, number: str
) -> None:
    assert "starts with your first message" in shown(handler(context, "opening")(request(**{name: number})))


@pytest.mark.parametrize("number", [7, 10**20, None])
def test_turning_to_a_conversation_that_is_not_there_is_told(context: Context, number: int | None) -> None:
    event = SimpleNamespace(_data={"conversation": number})
    assert "There is no" in shown(asyncio.run(handler(context, "choosing")(event, request())))


@pytest.mark.parametrize("name", ["choosing", "fresh", "counting"])
def test_a_busy_database_is_told_when_turning_to_another_conversation(
    context: Context, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def busy(*arguments: Any, **named: Any) -> None:
        raise DatabaseBusy("The database is held by another process.")

    found = handler(context, name)
    monkeypatch.setattr(chat_wiring, "model_state", busy)
    monkeypatch.setattr(chat_wiring, "cast_for", busy)
    beginning = (request(), None, EMPTY, None, "demo", "2")
    arguments: dict[str, tuple[Any, ...]] = {
        "choosing": (SimpleNamespace(_data={"conversation": 1}), request()),
        "fresh": (*beginning, "base", "base", "base"),
        "counting": beginning,
    }
    updates = asyncio.run(found(*arguments[name]))
    assert "held by another process" in shown(updates)


def test_nothing_is_stored_for_a_conversation_of_someone_else(world: World, context: Context) -> None:
    with serving(context, says("Red.", "Round.")):
        number = ask(context)[-1].conversation
    with pytest.raises(NotFound):
        asyncio.run(
            everything(send(context, Stops(), "s", "bob", number, "Mine?", (), Cast(), Decoding().model_dump()))
        )
    assert len(stored(world).turns) == 3
    assert list_conversations(world.db, "bob") == []
