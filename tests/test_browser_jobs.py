"""The queue in Chromium: held, reordered, released; a job run again, deleted and restored; its log searched."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from browser import browsing, serving
from factories import open_world
from storage.database import session
from storage.folder import DataFolder
from storage.jobs import get_job, list_jobs
from storage.lifecycle import JobStatus

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.usefixtures("chromium")]


def queue_judge(page: Any, address: str) -> int:
    """Start the rule-based judge from its form; returns the job's id."""
    page.goto(f"{address}/jobs?kind=judge")
    page.locator("#jobs-list [data-open]").wait_for(state="attached")
    page.locator("#start-judge").click()
    page.wait_for_url("**/jobs?job=*")
    return int(page.url.rsplit("=", 1)[1])


def head(page: Any, text: str) -> None:
    page.locator("#job-head").get_by_text(re.compile(text)).first.wait_for()


def test_a_queue_is_held_reordered_and_released(tmp_path: Path) -> None:
    data = tmp_path / "data"
    world = open_world(data)
    for number in range(1, 4):
        world.candidates(world.sample(number), ["circle", "a square"], world.job())
    world.db.close()
    with session(DataFolder(data)) as db:
        for job in list_jobs(db):  # they stand for those that brought the answers
            db.conn.execute("UPDATE jobs SET status = 'done' WHERE id = ?", [job.id])
    with serving(data) as address, browsing() as page:
        page.goto(f"{address}/jobs")
        page.locator("#queue-hold").get_by_text("Hold the queue").click()
        page.locator("#queue-line").get_by_text("The queue is held").wait_for()
        queue_judge(page, address)
        page.locator("#job-stop").click()
        page.locator("#job-question").get_by_text("out of the queue?").wait_for()
        page.locator("#confirm-stop").click()
        head(page, "stopped before it started")
        first, second = queue_judge(page, address), queue_judge(page, address)
        head(page, "number 2 in the queue: the queue is held by")

        page.locator("#job-queue").get_by_role("button", name="First").click()
        head(page, "number 1 in the queue")
        page.locator("#job-queue").get_by_role("button", name="Up").click()
        page.locator("#job-problem").get_by_text("is the first already").wait_for()
        page.locator("#job-after input").click()
        page.get_by_role("option", name=re.compile(f"#{first} Judge")).click()
        head(page, f"after job {first}; the queue is held")

        page.locator("#queue-hold").get_by_text("Release the queue").click()
        head(page, r"\bdone\b")
        page.locator("#plumb-ends").get_by_text(f"#{second} Judge is done").wait_for()
        assert page.title().startswith("(done) Jobs")
        told = page.locator("#plumb-ends .plumb-end").all_inner_texts()
        # An earlier job's note may still stand there, where the machine is slow.
        assert len(told) == len(set(told)) >= 2, "each end is told once"

        page.locator("#log-wanted input, #log-wanted textarea").fill("no such line")
        page.locator("#log-search").click()
        page.locator("#log-found").get_by_text("0 lines with").wait_for()
        page.get_by_role("button", name="Attempts").click()
        page.locator("#job-attempts").get_by_text("done").first.wait_for()
        with page.expect_download() as download:
            page.locator("#job-downloads a", has_text="run folder").click()
        names = zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())).namelist()
        assert f"job-{second}/job.json" in names

        page.locator("#job-delete").click()
        page.locator("#job-question").get_by_text("goes to the bin").wait_for()
        page.wait_for_function("document.activeElement.id === 'confirm-cancel'")
        page.keyboard.press("Enter")
        page.locator("#job-question").wait_for(state="hidden")
        page.locator("#job-delete").click()
        page.locator("#confirm-delete").click()
        page.locator("#job-undo").get_by_text(f"Job {second} is deleted").wait_for()
        page.locator("#jobs-bin .plumb-bin").get_by_text("1 deleted run").wait_for()
        page.locator("#job-undo").get_by_role("button", name="Undo").click()
        head(page, r"\bdone\b")
        page.locator("#jobs-bin .plumb-bin").wait_for(state="detached")

        page.locator("#queue-hold").get_by_text("Hold the queue").click()
        page.locator("#job-run-again").click()
        page.locator("#job-problem").get_by_text(re.compile("nothing to judge", re.I)).wait_for()
        page.locator("#job-clone").click()
        page.locator("#start-judge").wait_for()
        assert page.problems == []
    with session(DataFolder(data)) as db:
        jobs = [get_job(db, number) for number in (first, second)]
        assert [job.status for job in jobs] == [JobStatus.DONE] * 2
        assert jobs[0].ended_at is not None
        assert jobs[1].started_at is not None
        assert jobs[0].ended_at <= jobs[1].started_at, "it came after the other"
