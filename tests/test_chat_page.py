"""The Chat page against a scripted model process: what is asked, shown, stored, stopped and refused."""

from __future__ import annotations

import asyncio
import base64
import re
import threading
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
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
from jobs.keys import serve_key
from storage import jobs as store
from storage.chats import get_conversation, list_conversations
from storage.errors import NotFound, PlumbError, UserError
from storage.lifecycle import JobStatus
from storage.records import METRICS
from workbench import chat_view
from workbench.chat_client import Waiting, find_process, look_at, read_event, start_process
from workbench.chat_desk import (
    Cast,
    Decoding,
    View,
    cast_of,
    choices_of,
    default_cast,
    model_state,
    opened,
)
from workbench.chat_history import history
from workbench.chat_round import Stops, answer_last, send
from workbench.context import Context
from workbench.pages import chat as page

pytestmark = pytest.mark.usefixtures("no_supervisor")


def test_both_columns_answer_and_grow_before_the_readers_eyes(world: World, context: Context) -> None:
    adapter = trained(world)
    script = says("A red circle.", "It is red and round.")
    slow = [part for event in script for part in (event, 0.2)]
    with serving(context, slow, adapters=(adapter,)) as server:
        views = ask(context, cast=Cast.of("demo", None, adapter), temperature=0.5, seed=3, max_new_tokens=40)
    last = views[-1]
    assert texts(last, 0) == ["What is it?", "A red circle."]
    assert texts(last, 1) == ["What is it?", "It is red and round."]
    assert not last.running
    assert "left: 3 tokens · right: 5 tokens" in last.status
    assert any("A …" in text or "A red …" in text for view in views[1:-1] for text in texts(view, 0))
    (request,) = server.requests
    assert [(column["id"], column["adapter"]) for column in request["columns"]] == [
        ("left", None),
        ("right", adapter),
    ]
    assert {name: request[name] for name in ("temperature", "top_p", "seed", "max_new_tokens")} == {
        "temperature": 0.5,
        "top_p": 1.0,
        "seed": 3,
        "max_new_tokens": 40,
    }
    turns = stored(world).turns
    assert [(turn.role, turn.column_number, turn.adapter_id, turn.finish) for turn in turns] == [
        ("user", None, None, None),
        ("assistant", 0, None, "stop"),
        ("assistant", 1, adapter, "stop"),
    ]


def test_each_column_gets_its_own_answers_as_history(world: World, context: Context) -> None:
    with serving(context, says("Red.", "Round."), says("Yes.", "No.")) as server:
        first = ask(context, "What is it?")
        ask(context, "Sure?", conversation=first[-1].conversation)
    left, right = (column["messages"] for column in server.requests[1]["columns"])
    said = [[part["text"] for message in side for part in message["content"]] for side in (left, right)]
    assert said == [["What is it?", "Red.", "Sure?"], ["What is it?", "Round.", "Sure?"]]
    assert [message["role"] for message in left] == ["user", "assistant", "user"]
    assert len(list_conversations(world.db, USER)) == 1


def test_images_go_in_as_bytes_and_are_shown_by_address(world: World, context: Context, tmp_path: Path) -> None:
    files = []
    for number, colour in enumerate([(200, 0, 0), (0, 0, 200)]):
        file = tmp_path / f"{number}.png"
        file.write_bytes(png(colour))
        files.append(str(file))
    with serving(context, says("Two.", "Two."), says("Red.", "Red.")) as server:
        first = ask(context, "How many?", files=tuple(files))
        ask(context, "", files=(files[0],), conversation=first[-1].conversation)
    first_parts = server.requests[0]["columns"][0]["messages"][0]["content"]
    assert [part["type"] for part in first_parts] == ["image", "image", "text"]
    assert base64.b64decode(first_parts[1]["data"]) == png((0, 0, 200))
    assert [part["type"] for part in server.requests[1]["columns"][1]["messages"][-1]["content"]] == ["image"]
    sha256 = stored(world).turns[0].content[0]["image"]
    assert f'src="/thumbnails/{sha256}"' in texts(first[-1], 0)[0]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", r"bad\.png is empty"),
        (b"\x89PNG\r\n\x1a\nbroken", r"bad\.png is not an image|bad\.png is damaged"),
        (png()[:60], r"bad\.png is (damaged|not an image)"),
    ],
)
def test_a_bad_image_is_refused_and_nothing_is_stored(
    world: World, context: Context, tmp_path: Path, data: bytes, text: str
) -> None:
    file = tmp_path / "bad.png"
    file.write_bytes(data)
    with pytest.raises(UserError, match=text):
        ask(context, "What is it?", files=(str(file),))
    assert list_conversations(world.db, USER) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"text": " \n"}, "The message is empty"),
        ({"temperature": 7.0}, r"temperature = 7\.0"),
        ({"max_new_tokens": None}, "max_new_tokens = None"),
        ({"cast": Cast("no such model")}, "Unknown base model 'no such model'"),
        ({"cast": Cast.of("demo", None, 99)}, "There is no adapter 99"),
        ({"conversation": 99}, "There is no conversation 99"),
    ],
)
def test_what_cannot_be_asked_says_why(
    world: World, context: Context, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(PlumbError, match=text):
        ask(context, **arguments)
    assert list_conversations(world.db, USER) == []


def test_an_adapter_of_another_base_is_refused(world: World, context: Context) -> None:
    adapter = trained(world, base="owner/other")
    with pytest.raises(UserError, match="belongs to 'owner/other', not to 'demo'"):
        ask(context, cast=Cast.of("demo", None, adapter))


def test_stop_ends_the_decoding_and_keeps_what_was_said(world: World, context: Context) -> None:
    script: Script = [{"column": "left", "delta": "A red"}, {"column": "right", "delta": "It"}, 30.0]

    async def play() -> list[View]:
        stops, views = Stops(), []
        source = send(context, stops, "mine", USER, None, "What?", (), Cast(), Decoding().model_dump())
        async with aclosing(source) as open_views:
            async for view in open_views:
                views.append(view)
                if any("A red" in text for text in texts(view, 0)):
                    stops.stop("another session")
                    stops.stop("mine")
        return views

    with serving(context, script) as server:
        last = asyncio.run(play())[-1]
        assert server.left.wait(10), "the connection stayed open"
    assert "A red" in texts(last, 0)[-1]
    assert "(stopped)" in texts(last, 0)[-1]
    assert not last.running
    assert [(turn.content[0]["text"], turn.finish) for turn in stored(world).turns[1:]] == [
        ("A red", "stopped"),
        ("It", "stopped"),
    ]


def test_turning_to_another_conversation_stores_what_was_said_and_shows_no_more(
    world: World, context: Context
) -> None:
    async def play() -> list[View]:
        stops, views = Stops(), []
        tasks: list[asyncio.Task[None]] = []
        source = send(context, stops, "mine", USER, None, "What?", (), Cast(), Decoding().model_dump())
        async with aclosing(source) as open_views:
            async for view in open_views:
                views.append(view)
                if any("A red" in text for text in texts(view, 0)) and not tasks:
                    tasks.append(asyncio.create_task(stops.abandon("mine")))
                    await asyncio.sleep(0)
                    views.clear()
        await tasks[0]
        assert [turn.finish for turn in stored(world).turns] == [None, "stopped", "stopped"]
        return views

    with serving(context, [{"column": "left", "delta": "A red"}, 30.0]) as server:
        assert asyncio.run(play()) == []
        assert server.left.wait(10), "the connection stayed open"


def test_a_closed_tab_ends_the_decoding_and_keeps_what_was_said(world: World, context: Context) -> None:
    async def play() -> None:
        source = send(context, Stops(), "s", USER, None, "What?", (), Cast(), Decoding().model_dump())
        async for view in source:
            if any("Half" in text for text in texts(view, 1)):
                break
        await source.aclose()

    with serving(context, [{"column": "right", "delta": "Half"}, 30.0]) as server:
        asyncio.run(play())
        assert server.left.wait(10), "the connection stayed open"
    assert [turn.content[0]["text"] for turn in stored(world).turns if turn.column_number == 1] == ["Half"]


def test_views_keep_coming_while_nothing_is_said(context: Context) -> None:
    """Between two views nobody could tell the generator that the tab has gone."""
    fourth = threading.Event()

    async def play() -> None:
        source = send(context, Stops(), "s", USER, None, "What?", (), Cast(), Decoding().model_dump())
        silent = 0
        async with aclosing(source) as views:
            async for view in views:
                silent += view.running and "Answering" in view.status and len(texts(view, 0)) == 2
                if silent == 4:
                    fourth.set()

    with serving(context, [fourth, *says("Late.", "Late.")]) as server:
        asyncio.run(play())
        assert not server.late, "the views stopped while the model was silent"


def test_an_answer_without_a_word_leaves_the_question_open(world: World, context: Context) -> None:
    with serving(context, [{"error": "The device is out of memory."}], says("Red.", "Round.")) as server:
        last = ask(context)[-1]
        assert "The device is out of memory." in last.status
        assert last.unanswered
        assert [turn.role for turn in stored(world).turns] == ["user"]
        assert last.conversation is not None
        again = asyncio.run(
            everything(answer_last(context, Stops(), "s", USER, last.conversation, Cast(), Decoding()))
        )
    assert texts(again[-1], 1) == ["What is it?", "Round."]
    assert len(server.requests[1]["columns"][0]["messages"]) == 1


def test_what_is_left_of_the_models_context_is_told(world: World, context: Context) -> None:
    lengths = [
        {"column": "left", "prompt": 90, "context": 200},
        {"column": "right", "prompt": 100, "context": 200},
    ]
    with serving(context, [*lengths, *says("Red.", "It is round.")]):
        last = ask(context, "what is it?")[-1]
    assert "97 tokens left in this conversation" in last.status


def test_the_system_prompt_and_the_attributes_are_sent_and_kept(world: World, context: Context) -> None:
    from jobs.gpu.chat_requests import ChatRequest

    with serving(context, says("Red.", "Round.")) as server:
        ask(context, "what is it?", system=" Be brief. ", verbosity=1)
    (sent,) = server.requests
    assert sent["columns"][0]["messages"][0] == {
        "role": "system",
        "content": [{"type": "text", "text": "Be brief."}],
    }
    assert sent["attributes"] == {**dict.fromkeys(METRICS, 4), "verbosity": 1}
    assert ChatRequest.model_validate(sent).attributes.verbosity == 1
    assert stored(world).settings["verbosity"] == 1


def test_a_column_that_answers_after_the_other_says_why(world: World, context: Context) -> None:
    reason = "it trained the projector too"
    with serving(context, [{"column": "right", "apart": reason}, *says("Red.", "Round.")]):
        views = ask(context, "what is it?")
    assert any(f"The right one answers after the other: {reason}." in view.status for view in views)
    assert "answers after" not in views[-1].status


def test_a_blind_round_does_not_tell_which_side_answers_later(world: World, context: Context) -> None:
    with serving(context, [{"column": "right", "apart": "it trained the projector too"}, *says("Red.", "Round.")]):
        views = ask(context, "what is it?", blind=True)
    assert any("One answers after the other." in view.status for view in views)
    assert not any("right one" in view.status or "projector" in view.status for view in views)


def test_an_error_of_one_column_leaves_the_other_alone(world: World, context: Context) -> None:
    script = [*says("Red.", "Half")[:2], {"column": "right", "error": "No more."}, *says("Red.", "x")[2:3]]
    with serving(context, script):
        last = ask(context)[-1]
    assert "No more." in last.status
    assert [turn.finish for turn in stored(world).turns] == [None, "stop", "failed"]


@pytest.mark.parametrize(
    ("script", "text"),
    [(["no json"], "answered what is not an event"), (["[1]"], "answered what is not an event")],
)
def test_nonsense_from_the_process_is_told(context: Context, script: list[Any], text: str) -> None:
    with serving(context, script):
        assert text in ask(context)[-1].status


def test_the_key_is_sent_and_a_wrong_one_is_refused(context: Context) -> None:
    with serving(context, says("a", "b")) as server:
        server.key = "another"
        last = ask(context)[-1]
    assert "needs the key of its start" in last.status
    assert server.keys[0].startswith("Bearer ")
    assert server.keys[0][7:] not in last.status


def test_the_page_tells_how_far_the_model_is(
    world: World, context: Context, wait_for: Callable[..., None]
) -> None:
    trained_job = world.job("dpo")
    store.move(world.db, trained_job.id, JobStatus.STARTING)
    store.set_progress(world.db, trained_job.id, done=12.0, total=30.0, unit="steps")
    seen: list[str] = []

    async def play() -> list[View]:
        views = []
        source = send(context, Stops(), "s", USER, None, "What?", (), Cast(), Decoding().model_dump())
        with ChatServer() as server:
            server.scripts.append(says("Red.", "Round."))
            async with aclosing(source) as open_views:
                async for view in open_views:
                    views.append(view)
                    step(view.status, server.port)
        return views

    def step(status: str, port: int) -> None:
        """Push the process one state on, once the page has told the one before."""
        job = store.list_jobs(world.db, kind="serve")[0] if store.list_jobs(world.db, kind="serve") else None
        if "number 1 in the queue" in status and job and job.status is JobStatus.QUEUED:
            seen.append(status)
            store.move(world.db, trained_job.id, JobStatus.DONE)
            store.move(world.db, job.id, JobStatus.STARTING)
        elif "process is starting" in status and job and job.status is JobStatus.STARTING:
            seen.append(status)
            store.move(world.db, job.id, JobStatus.RUNNING)
            store.set_progress(world.db, job.id, phase="loading the model")
        elif "Loading the model" in status and job and job.port is None:
            seen.append(status)
            store.set_progress(world.db, job.id, port=port)

    last = asyncio.run(play())[-1]
    assert len(seen) == 3
    assert f"waits for job {trained_job.id} (dpo, 12 of 30 steps)" in seen[0]
    assert f'href="/jobs?job={trained_job.id}"' in seen[0]
    assert texts(last, 0)[-1] == "Red."


def test_stopping_while_the_model_loads_leaves_the_question_open(world: World, context: Context) -> None:
    async def play() -> View:
        stops = Stops()
        views = []
        source = send(context, stops, "s", USER, None, "What?", (), Cast(), Decoding().model_dump())
        async with aclosing(source) as open_views:
            async for view in open_views:
                views.append(view)
                if "queue" in view.status:
                    stops.stop("s")
        return views[-1]

    last = asyncio.run(play())
    assert not last.running
    assert last.unanswered
    assert [turn.role for turn in stored(world).turns] == ["user"]


def test_a_process_that_dies_while_loading_is_told(world: World, context: Context) -> None:
    job_id = add_serve_job(context)
    store.move(world.db, job_id, JobStatus.STARTING)
    assert isinstance(look_at(context, job_id), Waiting)
    store.move(world.db, job_id, JobStatus.FAILED, "No such model.")
    with pytest.raises(PlumbError, match=rf"job {job_id}\) is not there: No such model\."):
        look_at(context, job_id)


def test_a_process_that_has_left_is_replaced(world: World, context: Context) -> None:
    """Its port refuses; once the supervisor has noticed, another one is started and the question answered."""
    with ChatServer() as gone:
        port = gone.port
    job_id = add_serve_job(context)
    set_running(context, job_id, port)

    async def play() -> list[View]:
        views = []
        source = send(context, Stops(), "s", USER, None, "What?", (), Cast(), Decoding().model_dump())
        with ChatServer() as server:
            server.scripts.append(says("Red.", "Round."))
            async with aclosing(source) as open_views:
                async for view in open_views:
                    views.append(view)
                    if "has left" in view.status and store.get_job(world.db, job_id).status is JobStatus.RUNNING:
                        store.move(world.db, job_id, JobStatus.FAILED, "gone")
                    newest = store.list_jobs(world.db, kind="serve")[0]
                    if newest.status is JobStatus.QUEUED:
                        set_running(context, newest.id, server.port)
        return views

    assert texts(asyncio.run(play())[-1], 0)[-1] == "Red."


def test_a_running_process_is_shared_and_one_that_lacks_the_adapter_is_replaced(
    world: World, context: Context
) -> None:
    first = trained(world, "one")
    held = add_serve_job(context, (first,))
    found = find_process(world.db, "demo", [])
    assert found is not None
    assert found.id == held
    second = trained(world, "two")
    assert find_process(world.db, "demo", [second]) is None
    assert find_process(world.db, "owner/other", []) is None
    new = start_process(context, world.db, USER, "demo", [second])
    assert new.config["adapters"] == [first, second]
    assert store.get_job(world.db, held).status is JobStatus.STOPPED
    assert serve_key(context.folder, new.id) != serve_key(context.folder, held)


def test_the_cast_of_an_address_and_of_a_conversation(world: World, context: Context) -> None:
    assert default_cast(world.db) == Cast.of("demo", None, None)
    first, second = trained(world, "one"), trained(world, "two")
    assert default_cast(world.db) == Cast.of("demo", None, second)
    assert default_cast(world.db, adapter=first) == Cast.of("demo", None, first)
    with pytest.raises(NotFound):
        default_cast(world.db, adapter=77)
    assert [value for _, value in choices_of(world.db, "demo")] == ["base", str(second), str(first)]
    assert Cast.read("demo", "base", str(first)) == Cast.of("demo", None, first)
    with serving(context, says("a", "b"), adapters=(first,)):
        ask(context, cast=Cast.of("demo", first, None))
    assert cast_of(stored(world)) == Cast.of("demo", first, None)


def test_a_conversation_opens_as_it_was_and_only_for_its_user(world: World, context: Context) -> None:
    with serving(context, says("Red.", "Round.", finish="length")):
        last = ask(context)[-1]
    view = opened(stored(world))
    assert view.columns == last.columns
    assert "cut off" in texts(view, 0)[-1]
    assert last.conversation is not None
    with pytest.raises(NotFound):
        get_conversation(world.db, last.conversation, "bob")


def test_questions_without_an_answer_are_joined(world: World, context: Context) -> None:
    """Chat templates want the roles to take turns."""
    with serving(context, [{"error": "no"}], says("Red.", "Red.")) as server:
        first = ask(context, "One")[-1]
        ask(context, "Two", conversation=first.conversation)
    (message,) = server.requests[1]["columns"][0]["messages"]
    assert [part["text"] for part in message["content"]] == ["One", "Two"]
    assert len(history(context, stored(world).turns, 0)) == 2


def test_the_state_of_the_model_is_told_before_anything_is_asked(world: World, context: Context) -> None:
    assert "/jobs?kind=dpo" in model_state(context, Cast())
    assert "starts with your first message" in model_state(context, Cast())
    adapter = trained(world)
    with serving(context, adapters=(adapter,)):
        state = model_state(context, Cast.of("demo", None, adapter))
    assert "ready" in state
    assert "/jobs?kind=dpo" not in state


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a <script>x</script> b", "a &lt;script>x&lt;/script> b"),
        ("<img src=x onerror=y>", "&lt;img src=x onerror=y>"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("use `<b>` so <i>", "use `<\u2060b>` so &lt;i>"),
        ("``a ` <b>`` <c>", "``a ` <\u2060b>`` &lt;c>"),
        ("an open ` <b>", "an open ` &lt;b>"),
        ("```html\n<b>\n```\n<i>", "```html\n<\u2060b>\n```\n&lt;i>"),
        ("~~~\n<b>\n```\n<b>\n~~~\n<i>", "~~~\n<\u2060b>\n```\n<\u2060b>\n~~~\n&lt;i>"),
        ("```\n<b> still code", "```\n<\u2060b> still code"),
        ("`![x](http://foreign/x.png)`", "`!\u2060[x](http://foreign/x.png)`"),
        ("`1 < 2 <= 3`", "`1 < 2 <= 3`"),
        ("![x](http://foreign/x.png)", "!&#91;x](http://foreign/x.png)"),
        ("**bold** 1 < 2", "**bold** 1 &lt; 2"),
    ],
)
def test_html_is_shown_and_never_run(text: str, safe: str) -> None:
    assert chat_view.safe_markdown(text) == safe


@pytest.mark.parametrize(
    "text",
    [
        "a `\n\n<img src=x onerror=alert(1)>\n\n`",  # a code span ends with its paragraph
        "\\`<b>x</b>\\`",  # escaped backticks are none
        "```a`b\n<b>hi</b>",  # no fence: a backtick in its first line
        "- a\n  ```\n  x\n<b>hi</b>",  # a fence ends with the list item
        "> ```\n<b>hi</b>",
        "`\n- <b>x</b>`",
        "`<!-- --><?x?></b>`",
        "`\n# x\n![x](http://foreign/x.png)`",
    ],
)
def test_no_tag_and_no_picture_opens_whatever_the_browser_takes_for_code(text: str) -> None:
    safe = chat_view.safe_markdown(text)
    assert not re.search(r"<[A-Za-z/!?]", safe)
    assert not re.search(r"!\[", safe)


def test_titles_of_conversations_are_escaped(world: World, context: Context) -> None:
    with serving(context, says("a", "b")):
        last = ask(context, "<script>alert(1)</script>")[-1]
    listed = chat_view.conversation_list(list_conversations(world.db, USER), last.conversation)
    assert "<script>" not in listed
    assert f'data-url="?conversation={last.conversation}"' in listed
    assert "<script>" not in texts(last, 0)[0]


def test_lines_that_tell_nothing_are_passed_over() -> None:
    assert read_event("") is None
    assert read_event('{"request": "abc"}') is None


def test_every_event_of_the_page_has_a_concurrency_limit(context: Context) -> None:
    built = page.build(context)
    events = [fn for fn in built.fns.values() if fn.fn is not None]
    assert events
    assert all(isinstance(fn.concurrency_limit, int) and fn.concurrency_limit > 1 for fn in events)
