"""The Chat page in Chromium: columns of outside models that are scripted, and the real model's process, killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from browser import browsing, serving
from factories import World, open_world, png
from jobs.settings import local_user
from openai_server import Fault, OpenAiServer
from storage import jobs as store
from storage.chats import get_conversation, list_conversations, start_conversation
from storage.database import session
from storage.folder import DataFolder
from storage.lifecycle import JobStatus
from tiny import tiny_llava
from workbench.chat_desk import Decoding

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.usefixtures("chromium")]

HOSTILE = '<img src=x onerror="window.ran=1"><script>window.ran=2</script> $$\\href{javascript:window.ran=3}{x}$$'


class Chat:
    """The page as a person uses it."""

    def __init__(self, page: Any, folder: DataFolder) -> None:
        self.page, self.folder = page, folder

    def answers(self, side: str) -> Any:
        return self.page.locator(f"#chat-log-{side} .bot.message")

    def last(self, side: str) -> str:
        return str(self.answers(side).last.inner_text()).strip()

    def choose(self, side: str, name: str) -> None:
        field = self.page.locator(f"#chat-{side} input")
        field.click()
        self.page.get_by_role("option", name=name).first.click()

    def write(self, text: str, image: Path | None = None) -> None:
        if image is not None:
            self.page.locator("#chat-box input[type=file]").set_input_files(str(image))
            self.page.locator("#chat-box img").first.wait_for()
        box, before = self.page.locator("#chat-box textarea"), self.stored("user")
        for _ in range(20):  # while the last answer's event is not quite over, nothing is sent
            box.fill(text)
            box.press("Enter")
            for _ in range(30):
                if self.stored("user") > before:
                    return
                self.page.wait_for_timeout(100)
        pytest.fail("the question was never stored")

    def ask(self, text: str, image: Path | None = None, sides: tuple[str, ...] = ("left", "right")) -> list[str]:
        before = self.stored("assistant")
        self.write(text, image)
        self.wait(lambda: self.stored("assistant") >= before + len(sides) and self.idle(), "all columns answer")
        self.wait(lambda: all(map(self.last, sides)), "the answers are drawn")  # a moment after they are stored
        return [self.last(side) for side in sides]

    def stored(self, role: str) -> int:
        """How many turns of a role the database has."""
        with session(self.folder) as db:
            return int(db.conn.execute("SELECT count(*) FROM turns WHERE role = ?", [role]).fetchone()[0])

    def idle(self) -> bool:
        return not self.page.locator("#chat-acts [data-act=stop]:visible").count() and self.stop_is_off()

    def stop_is_off(self) -> bool:
        return bool(self.page.locator("#chat-stop").evaluate("e => (e.querySelector('button') || e).disabled"))

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}: {self.page.locator('#chat-status').inner_text()}"
            self.page.wait_for_timeout(50)

    def act(self, label: str) -> None:
        self.page.get_by_role("button", name=label, exact=True).click()


def said(body: dict[str, Any]) -> str:
    """What the scripted models answer: their name, how many images and questions they saw, their seed."""
    asked = [message for message in body["messages"] if message["role"] == "user"]
    contents = [message["content"] for message in asked]
    parts = [part for content in contents if not isinstance(content, str) for part in content]
    parts += [{"type": "text", "text": content} for content in contents if isinstance(content, str)]
    images = sum(part["type"] == "image_url" for part in parts)
    text = " ".join(part["text"] for part in parts if part["type"] == "text")
    if "hostile" in text:
        return HOSTILE
    return f"{body['model']} saw {images} of {len(asked)} at {body.get('seed')}"


def test_three_columns_of_outside_models(tmp_path: Path) -> None:
    data = tmp_path / "data"
    open_world(data).db.close()
    (tmp_path / "red.png").write_bytes(png())
    (tmp_path / "blue.png").write_bytes(png((20, 20, 200)))
    with (
        OpenAiServer(models=("one", "two", "three"), answer=said, delay=0.02) as server,
        serving(data, PLUMB_ENDPOINTS=f"lab={server.url}") as address,
        browsing() as page,
    ):
        chat = Chat(page, DataFolder(data))
        page.goto(f"{address}/chat")
        page.locator("#chat-talks [data-url]").wait_for(state="attached")
        page.locator("#chat-columns").get_by_text("3", exact=True).click()
        page.locator("#chat-middle").wait_for()
        for side, name in (("left", "one (lab)"), ("middle", "two (lab)"), ("right", "three (lab)")):
            chat.choose(side, name)
        everywhere = ("left", "middle", "right")
        assert [text.split(" at")[0] for text in chat.ask("What?", tmp_path / "red.png", everywhere)] == [
            "one saw 1 of 1",
            "two saw 1 of 1",
            "three saw 1 of 1",
        ]
        assert chat.ask("And text alone?", sides=everywhere)[1].startswith("two saw 1 of 2")
        assert chat.ask("And this?", tmp_path / "blue.png", everywhere)[2].startswith("three saw 2 of 3")
        page.screenshot(path=tmp_path / "three.png")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing overflows"

        # One column again: another seed, and the others stay.
        left = chat.last("left")
        chat.act("Retry the middle column")
        chat.wait(lambda: chat.last("middle").startswith("two saw 2 of 3 at 1") and chat.idle(), "the retry")
        focused = "document.activeElement.getAttribute('aria-label')"
        chat.wait(lambda: page.evaluate(focused) == "Retry the middle column", "the focus stays")
        assert chat.last("left") == left

        # Stopping the left one lets the others go on: each says a word and then waits for its reader to leave.
        server.script(Fault("pause"), Fault("pause"), Fault("pause"))
        chat.write("For ever?")
        chat.wait(lambda: all(chat.answers(side).count() == 4 for side in everywhere), "all begin")
        chat.act("Stop the left column")
        chat.wait(lambda: chat.last("left").endswith("(stopped)"), "the left one stops")
        chat.wait(lambda: server.left == ["pause"], "its connection is closed, and no other")
        assert page.get_by_role("button", name="Stop the right column").is_visible()
        page.locator("#chat-stop").click()
        chat.wait(chat.idle, "all stop")
        assert chat.last("right").endswith("(stopped)")

        # A question with its image comes into the box; Escape gives back what was being written.
        page.locator("#chat-box textarea").fill("a draft")
        page.locator("#chat-log-left a[title='Edit question 1']").first.click()
        page.locator("#chat-bar").get_by_text("Editing question 1").wait_for()
        page.locator("#chat-box img").first.wait_for()
        assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
        page.keyboard.press("Escape")
        chat.wait(lambda: page.locator("#chat-box textarea").input_value() == "a draft", "the draft is back")
        assert page.locator("#chat-box img").count() == 0

        # The second question is asked otherwise; what followed goes.
        page.locator("#chat-log-left a[title='Edit question 2']").first.click()
        page.locator("#chat-bar").get_by_text("Editing question 2").wait_for()
        assert page.locator("#chat-box textarea").input_value() == "And text alone?"
        page.locator("#chat-box textarea").fill("And otherwise?")
        page.locator("#chat-box textarea").press("Enter")
        chat.wait(lambda: chat.answers("left").count() == 2 and chat.idle(), "the edited question is answered")
        assert chat.last("left").startswith("one saw 1 of 2")
        assert page.locator("#chat-box textarea").input_value() == "a draft"
        assert page.locator("#chat-bar").inner_text().strip() == ""

        # What a model writes is shown and never run.
        chat.ask("hostile", sides=everywhere)
        assert "<script>window.ran=2</script>" in chat.last("left")
        assert page.evaluate("window.ran") is None
        assert page.locator("#chat-log-left a[href^='javascript']").count() == 0

        # The best of three, with its pairs.
        page.locator("#vote-middle").click()
        page.locator("#vote-told").get_by_text("The middle one is best").wait_for()
        assert page.problems == []
    # Where the endpoint is gone, its models stay named: the base would answer in their place.
    with serving(data, PLUMB_ENDPOINTS="lab=http://127.0.0.1:9/v1") as address, browsing() as page:
        page.goto(f"{address}/chat?conversation=1")
        page.wait_for_function("document.querySelector('#chat-middle input')?.value === 'two@lab (not there now)'")
    with session(DataFolder(data)) as db:
        (talk,) = list_conversations(db, local_user())
        assert talk.settings["columns"] == ["one@lab", "two@lab", "three@lab"]


def begun(world: World, longest: int) -> int:
    """A conversation without a turn whose settings the page's form takes over when it is opened."""
    model = str(tiny_llava())
    settings = {"model": model, "columns": ["base", "base"], **Decoding(max_new_tokens=longest).model_dump()}
    return start_conversation(world.db, local_user(), settings)


def test_the_models_process_is_killed_in_mid_stream_and_the_conversation_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    world = open_world(data)
    short, long = begun(world, 12), begun(world, 200)
    world.db.close()
    (tmp_path / "red.png").write_bytes(png())
    folder = DataFolder(data)

    def running() -> list[Any]:
        with session(folder) as db:
            jobs = store.list_jobs(db, kind="serve", statuses=[JobStatus.RUNNING])
            return [store.attempts_of(db, job.id)[-1] for job in jobs if job.port]

    def tried(side: int) -> bool:
        """Whether this column's answer was drawn once more."""
        with session(folder) as db:
            turns = get_conversation(db, long, local_user()).turns
            return any(turn.column_number == side and "tried" in turn.settings for turn in turns)

    with serving(data) as address, browsing() as page:
        chat = Chat(page, folder)
        page.goto(f"{address}/chat?conversation={short}")
        page.locator(f"#chat-talks [data-url$='={short}']").wait_for(state="attached")
        left, right = chat.ask("What is it?", tmp_path / "red.png")
        assert left
        assert right
        chat.ask("And text alone?")
        page.goto(f"{address}/chat?conversation={long}")
        page.locator(f"#chat-talks [data-url$='={long}']").wait_for(state="attached")
        first = running()[0]
        # It runs in small slices, so that a slow page sees it speak before it has ended.
        os.kill(first.pid, signal.SIGSTOP)
        chat.write("Once more, at length?")
        while not (chat.answers("left").count() and len(chat.last("left")) > 5):
            os.kill(first.pid, signal.SIGCONT)
            page.wait_for_timeout(20)
            os.kill(first.pid, signal.SIGSTOP)
            page.wait_for_timeout(100)
        os.kill(first.pid, signal.SIGKILL)
        chat.wait(lambda: chat.idle() and chat.answers("right").count() == 1, "it is asked again", seconds=150)
        assert running()[0].pid != first.pid
        assert "(cut off at the longest answer)" in chat.last("left")
        chat.act("Retry the left column")
        chat.wait(lambda: tried(0) and chat.idle(), "the new process answers")
        assert not tried(1)
        said = chat.last("left")
        page.reload()
        chat.wait(lambda: chat.answers("left").count() == 1, "the conversation is there")
        assert chat.last("left") == said
