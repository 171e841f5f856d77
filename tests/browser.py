"""The real app in a real browser: what the browser test and the script for the screenshots share."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from jobs.processes import PROJECT
from workbench.job_launch import tab_of

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """Debian's Chromium; Playwright's own cannot be downloaded everywhere."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def serving(data: Path, **more: str) -> Iterator[str]:
    """Run app.py on a free port; yields its address. Whatever it started is ended with it.

    Args:
        more: variables of its environment.
    """
    app, address = start_app(data, **more)
    try:
        yield address
    finally:
        app.kill()
        app.wait()
        for process in processes_of(data):
            process.kill()


def start_app(data: Path, **more: str) -> tuple[subprocess.Popen[bytes], str]:
    """app.py on a free port, with its address; the caller ends it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PLUMB_")}
    environment["PLUMB_DATA"] = str(data)
    environment["PLUMB_DEVICES"] = "cpu"
    environment |= more
    with tempfile.TemporaryFile("w+") as output:
        app = subprocess.Popen(
            [sys.executable, "app.py", "--port", "0"],
            cwd=PROJECT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        return app, _address(app, output)


def _address(app: subprocess.Popen[bytes], output: Any, seconds: float = 60.0) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        output.seek(0)
        text = output.read()
        if found := re.search(r"http://\S+", text):
            return found.group()
        if app.poll() is not None:
            raise AssertionError(f"app.py ended with {app.returncode}: {text}")
        time.sleep(0.1)
    raise AssertionError(f"app.py said nothing within {seconds} s: {text}")


def processes_of(data: Path) -> list[psutil.Process]:
    """Supervisor and workers of a data folder, known by their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("PLUMB_DATA") == str(data):
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def browsing(width: int = 1280, height: int = 720, dark: bool = False) -> Iterator[Any]:
    """A page of a fresh Chromium; errors on its console are collected in `page.problems`."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=find_chromium(),
            args=FLAGS,
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        context.set_default_timeout(90_000)  # a busy machine is slow, not wrong
        page = context.pages[0] if context.pages else context.new_page()
        problems: list[str] = []

        def keep(text: str) -> None:
            # Gradio's own words when a page is left whose stream is still open, on a slow machine.
            if "AbortError" not in text and "Connection errored out" not in text:
                problems.append(text)

        page.on("pageerror", lambda error: keep(str(error)))
        page.on("console", lambda entry: keep(entry.text) if entry.type == "error" else None)
        page.problems = problems  # type: ignore[attr-defined]
        yield page
        context.close()


class Tour:
    """The main job, step by step, as a person does it in the browser."""

    def __init__(self, page: Any, address: str, look: Callable[[str], None] = lambda name: None) -> None:
        self.page = page
        self.address = address
        self.look = look

    def open(self, path: str, waits_for: str) -> None:
        self.page.goto(self.address + path)
        self.page.locator(waits_for).first.wait_for()

    def load_demo(self, number: int) -> None:
        self.open("/", "#pb-load-demo")
        self.look("first-visit")
        self.page.get_by_label("Number of samples").first.fill(str(number))
        self.page.locator("#pb-load-demo").click()
        self.page.locator(".pb-sample").wait_for(timeout=120_000)

    def start(self, kind: str, seconds: float, look: str = "", **fields: str) -> int:
        """Fill the form of a kind, press Start, wait until the job is done; returns its id."""
        dataset = fields.pop("dataset", "")
        query = f"&dataset={dataset}" if dataset else ""
        tab = tab_of(kind)
        self.open(f"/jobs?kind={kind}{query}", f"#start-{tab}")
        panel = self.page.locator(f"#launch-{tab}")
        # The form is filled from the database after it is painted, in one answer with the list.
        self.page.locator("#jobs-list [data-open]").wait_for(state="attached")
        advanced = panel.get_by_role("button", name="Advanced")
        for label, value in fields.items():
            field = panel.get_by_label(label, exact=False).first
            if not field.is_visible():
                advanced.click()
            field.fill(value)
            field.blur()
        self.look(f"jobs-{kind}-form")
        self.page.locator(f"#start-{tab}").click()
        self.page.wait_for_url("**/jobs?job=*")
        job_id = int(self.page.url.rsplit("=", 1)[1])
        head = self.page.locator("#job-head")
        deadline = time.monotonic() + seconds
        looked = False
        while not re.search(r"\b(done|failed|stopped)\b", head.inner_text(), re.I):
            text = head.inner_text()
            assert time.monotonic() < deadline, f"job {job_id} ({kind}) takes over {seconds} s: {text}"
            if look and not looked and self.page.locator("#job-charts svg").count():
                self.page.wait_for_timeout(int(min(60.0, seconds / 6) * 1000))
                self.look(look)
                looked = True
            self.page.wait_for_timeout(500)
        assert re.search(r"\bdone\b", head.inner_text(), re.I), head.inner_text()
        return job_id

    def judge(self, look: Callable[[str], None], seconds: float = 300.0) -> int:
        """Estimate and start a Gemini judge job over all samples; returns its id once it is done."""
        self.open("/jobs?kind=judge&judge=gemini", "#ask-judge")
        self.page.locator("#jobs-list [data-open]").wait_for(state="attached")
        self.page.locator("#ask-judge").click()
        self.page.locator("#estimate-judge").get_by_text("$").first.wait_for()
        look("judge-estimate")
        self.page.locator("#start-judge").click()
        self.page.wait_for_url("**/jobs?job=*")
        job_id = int(self.page.url.rsplit("=", 1)[1])
        head = self.page.locator("#job-head")
        deadline = time.monotonic() + seconds
        looked = False
        while not re.search(r"\b(done|failed|stopped)\b", head.inner_text(), re.I):
            assert time.monotonic() < deadline, head.inner_text()
            found = re.search(r"([\d,]+) of ([\d,]+) samples", head.inner_text())
            share = int(found[1].replace(",", "")) / int(found[2].replace(",", "")) if found else 0.0
            if not looked and share > 0.5:
                look("judge-running")
                looked = True
            self.page.wait_for_timeout(300)
        assert re.search(r"\bdone\b", head.inner_text(), re.I), head.inner_text()
        look("judge-done")
        return job_id

    def score_first(self, values: tuple[int, ...] = (4, 4, 4, 2, 2)) -> None:
        """Score the first candidate of the first sample by hand on all five metrics."""
        self.open("/", ".pb-sample")
        card = self.page.locator(".pb-card").first
        metrics = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
        for metric, value in zip(metrics, values, strict=True):
            card.locator(f'button[data-metric="{metric}"][data-value="{value}"]').click()
        status = self.page.locator("#pb-status")
        status.get_by_text("Saved", exact=True).wait_for()
        self.look("samples")

    def make_pairs(self) -> int:
        """Add the pairs of the paper's rule and accept them; returns how many there are."""
        self.open("/pairs", "#pb-preview svg")
        self.look("pairs-preview")
        self.page.locator("#pb-add").click()
        self.page.locator("#pb-outcome .pb-notice.good").wait_for()
        self.page.locator("#pb-pairs [data-card]").first.wait_for()
        self.page.locator("#pb-accept-all").click()
        self.page.locator("#pb-outcome").get_by_text("accepted").wait_for()
        return int(re.sub(r"\D", "", self.page.locator('.pb-header [data-count="pairs"]').inner_text()))

    def freeze(self, name: str, heldout: int) -> None:
        self.page.locator("#pb-set-name").get_by_role("textbox").fill(name)
        self.page.get_by_label("Held out, %").fill(str(heldout))
        self.page.locator("#pb-freeze").click()
        self.page.locator("#pb-frozen").get_by_text("is frozen").wait_for()
        self.page.locator("#pb-sets").get_by_text(name).first.wait_for()
        self.look("pairs")

    def chat(self, text: str, image: Path | None = None, seconds: float = 240.0) -> tuple[str, str]:
        """Send a message with the image; returns what both columns answered."""
        if not self.page.url.startswith(f"{self.address}/chat"):
            self.open("/chat", "#chat-box textarea")
            self.page.locator("#chat-talks [data-url]").wait_for(state="attached")
        if image is not None:
            self.page.locator("#chat-box input[type=file]").set_input_files(str(image))
            self.page.locator("#chat-box img").first.wait_for()
        before = [self._answers(side).count() for side in ("left", "right")]
        self.page.locator("#chat-box textarea").fill(text)
        self.page.locator("#chat-box textarea").press("Enter")
        deadline = time.monotonic() + seconds
        stop = self.page.locator("#chat-stop")
        stop = stop if stop.evaluate("e => e.tagName") == "BUTTON" else stop.locator("button")
        while True:
            now = [self._answers(side).count() for side in ("left", "right")]
            if all(n > b for n, b in zip(now, before, strict=True)) and stop.is_disabled():
                break
            assert time.monotonic() < deadline, self.page.locator("#chat-status").inner_text()
            self.page.wait_for_timeout(300)
        left, right = (self._answers(side).last.inner_text().strip() for side in ("left", "right"))
        return left, right

    def _answers(self, side: str) -> Any:
        return self.page.locator(f"#chat-log-{side} .bot .message-content, #chat-log-{side} .bot.message")
