"""The Data page in Chromium: a zip is uploaded, shown, imported, seen; an import outlives its page."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from browser import browsing, serving
from factories import open_world, png
from storage.database import session
from storage.folder import DataFolder

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.usefixtures("chromium")]

BENCHMARKS = Path(__file__).resolve().parents[2] / "shared" / "benchmarks"


def look(page: Any, name: str) -> None:
    """A picture of the page for a person who asks for them: LOOKS=FOLDER."""
    if folder := os.environ.get("LOOKS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def a_zip(path: Path, rows: int = 12) -> Path:
    """A top folder with JSON lines and images; the third row names an SVG, the fourth is no JSON."""
    lines = [
        json.dumps(
            {"id": n, "images": [f"pic{n % 4}.png"], "prompt": f"Which colour is square {n}?", "reference": "red"}
        )
        for n in range(rows)
    ]
    lines[2] = json.dumps({"id": 2, "images": ["evil.svg"], "prompt": "<b>What</b> is it?"})
    lines[3] = "{half a row"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("colours/rows.jsonl", "\n".join(lines))
        made.writestr("colours/evil.svg", "<svg><script>alert(1)</script></svg>")
        for n in range(4):
            made.writestr(f"colours/pictures/pic{n}.png", png((60 * n, 30, 90)))
    return path


def upload(page: Any, *files: Path) -> None:
    page.locator("#data-upload input[type=file]").set_input_files([str(file) for file in files])


def test_a_zip_becomes_samples(tmp_path: Path) -> None:
    data = tmp_path / "data"
    open_world(data).db.close()
    with serving(data) as address, browsing() as page:
        page.goto(address)
        page.locator(".pb-welcome").get_by_role("link", name="Data").click()
        page.locator("#data-sources").get_by_text("No samples yet").wait_for()
        nav = page.locator(".pb-header").bounding_box()
        who = page.locator(".pb-user").bounding_box()
        assert who["x"] + who["width"] <= 1280
        assert who["height"] < 30, "the header is one line"
        assert nav["height"] < 60
        look(page, "data-empty")

        upload(page, a_zip(tmp_path / "colours.zip"))
        preview = page.locator("#data-preview")
        preview.get_by_text("Which colour is square 0?").wait_for()
        assert page.locator("#data-kind input").input_value() == "Plumb's own rows"
        assert page.locator("#data-source").get_by_role("textbox").input_value() == "jsonl:colours"
        assert preview.locator(".pi-pictures img").count() == 5
        broken = preview.locator(".pi-broken")
        broken.get_by_text("the image evil.svg is of a kind that isn't read").wait_for()
        broken.get_by_text("it is not JSON").wait_for()
        look(page, "data-preview")

        page.locator("#data-strict").get_by_role("checkbox").check()
        page.locator("#data-import").click()
        page.locator("#data-outcome").get_by_text("Nothing was imported, since 2 rows are broken").wait_for()
        page.locator("#data-strict").get_by_role("checkbox").uncheck()
        page.locator("#data-source").get_by_role("textbox").fill("colours")
        page.locator("#data-import").click()
        page.locator("#data-status").get_by_text("10 samples added").wait_for()
        page.locator("#data-sources").get_by_text("colours").wait_for()
        look(page, "data-finished")
        page.reload()
        page.locator("#data-status").get_by_text("10 samples added").wait_for()
        page.locator("#data-status").get_by_role("link", name="See the samples").click()
        page.wait_for_url("**/?source=colours")
        page.locator(".pb-sample").wait_for()
        assert page.locator("#pb-list li").count() == 10
        assert page.problems == []
    assert not [file for file in (data / "runtime" / "uploads").rglob("*") if file.suffix == ".png"]


def test_an_import_outlives_its_page_and_can_be_cancelled(tmp_path: Path) -> None:
    data = tmp_path / "data"
    open_world(data).db.close()
    rows = tmp_path / "many.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Question {n}?"}) + "\n" for n in range(40_000)))
    with serving(data) as address, browsing() as page:
        page.goto(f"{address}/data")
        page.locator("#data-sources").get_by_text("No samples yet").wait_for()
        upload(page, rows)
        page.locator("#data-preview").get_by_text("Question 0?").wait_for()
        page.locator("#data-import").click()
        page.locator("#data-status").get_by_text("Importing").wait_for()
        page.goto("about:blank")
        page.goto(f"{address}/data")
        page.locator("#data-status").get_by_text(re.compile(r"[\d,]+ of 40,000 rows")).wait_for()
        look(page, "data-running")
        page.locator("#data-cancel").click()
        page.locator("#data-status").get_by_text("Cancelled after").wait_for()
        with session(DataFolder(data)) as db:
            there = db["samples"].count
        assert 0 < there < 40_000
        look(page, "data-cancelled")
        page.locator("#data-import").click()
        page.locator("#data-status").get_by_text(f"{40_000 - there:,} samples added, {there:,} known").wait_for()
        assert page.problems == []
    with session(DataFolder(data)) as db:
        assert db["samples"].count == 40_000


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    data = tmp_path / "data"
    open_world(data).db.close()
    with serving(data) as address, browsing(dark=True) as page:
        page.goto(f"{address}/data")
        page.locator("#data-sources").get_by_text("No samples yet").wait_for()
        bad = io.BytesIO()
        with zipfile.ZipFile(bad, "w") as made:
            made.writestr("../../evil.jsonl", "{}")
        (tmp_path / "evil.zip").write_bytes(bad.getvalue())
        upload(page, tmp_path / "evil.zip")
        page.locator("#data-status").get_by_text("would lie outside of its folder").wait_for()
        page.locator("#data-hub").get_by_role("textbox").fill("not a name")
        page.locator("#data-fetch").click()
        page.locator("#data-outcome").get_by_text("give the name of a hub's data set").wait_for()
        look(page, "data-refused")
        assert not list(tmp_path.glob("**/evil.jsonl"))
        assert page.problems == []


def test_vqa_rad_as_a_zip(tmp_path: Path) -> None:
    folder = BENCHMARKS / "vqa_rad"
    if not folder.is_dir():
        pytest.skip(f"NOT TESTED: VQA-RAD is not at {folder}")
    with zipfile.ZipFile(tmp_path / "VQA_RAD.zip", "w") as made:
        for file in folder.rglob("*"):
            made.write(file, f"VQA_RAD/{file.relative_to(folder)}")
    data = tmp_path / "data"
    open_world(data).db.close()
    with serving(data) as address, browsing() as page:
        page.goto(f"{address}/data")
        page.locator("#data-sources").get_by_text("No samples yet").wait_for()
        upload(page, tmp_path / "VQA_RAD.zip")
        page.locator("#data-preview").get_by_text("testset.json row 1").wait_for()
        assert page.locator("#data-kind input").input_value() == "VQA-RAD"
        look(page, "data-vqa-rad")
        page.locator("#data-import").click()
        page.locator("#data-status").get_by_text("3,515 samples added").wait_for()
        page.locator("#data-status").get_by_role("link", name="See the samples").click()
        page.locator(".pb-sample img").first.wait_for()
    with session(DataFolder(data)) as db:
        splits = dict(db.execute("SELECT split, count(*) FROM samples GROUP BY split").fetchall())
    assert splits == {"train": 3064, "test": 451}
