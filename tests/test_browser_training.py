"""The four methods in Chromium on the demo: each checked and started from the page, its answers watched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browser import Tour, browsing, serving
from storage.adapters import list_adapters
from storage.checkpoints import checkpoint_answers
from storage.database import session
from storage.folder import DataFolder
from storage.jobs import metrics_of
from workbench.training_form import TRAINED

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.usefixtures("chromium")]


def check(page: Any) -> str:
    """Press Check; returns what is told."""
    page.locator("#check-train").click()
    page.locator("#needs-train .plumb-figures").wait_for()
    return str(page.locator("#needs-train").inner_text())


def test_each_method_is_trained_from_the_page(tmp_path: Path) -> None:
    data = tmp_path / "data"
    few = {"At most steps": "2", "Pairs a step": "2", "Pairs a batch": "2", "Watched samples": "2"}
    jobs: dict[str, int] = {}
    with serving(data) as address, browsing(1280, 860) as page:
        tour = Tour(page, address)
        tour.load_demo(24)
        tour.start("generate", seconds=400)
        tour.start("judge", seconds=90)
        tour.make_pairs()
        tour.freeze("shapes", heldout=30)
        for kind in TRAINED:
            tour.open(f"/jobs?kind={kind}&dataset=shapes", "#start-train")
            page.locator("#jobs-list [data-open]").wait_for(state="attached")
            told = check(page)
            assert "4.88 million (3.5%)" in told, told
            fields = (
                few if kind == "dpo" else {label.replace("Pairs", "Rows"): text for label, text in few.items()}
            )
            jobs[kind] = tour.start(kind, seconds=600, dataset="shapes", **fields)
            # Two evaluations after the answers before training: the slider has three places.
            slider = page.locator("#job-checkpoint input[type=range]")
            assert slider.get_attribute("max") == "2"
            page.locator("#job-answers").get_by_text("Answers after step 2").wait_for()
            slider.focus()
            slider.press("Home")
            page.locator("#job-answers").get_by_text("Answers before training").wait_for()
            slider.press("ArrowRight")
            page.locator("#job-answers").get_by_text("Answers after step 1").wait_for()
            picture = page.locator("#job-answers img").first
            assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
            assert "nothing is chosen by them" in page.locator("#job-ends").inner_text()
        assert page.problems == []

    folder = DataFolder(data)
    with session(folder) as db:
        assert {adapter.method for adapter in list_adapters(db)} == set(TRAINED)
        for kind, job in jobs.items():
            curves = metrics_of(db, job)
            assert [step for step, _ in curves["loss"]] == [1, 2], kind
            assert {"heldout_reward_accuracy", "report_reward_accuracy", "heldout_blank_margin"} <= curves.keys()
            assert {answer.step for answer in checkpoint_answers(db, job)} == {0, 1, 2}
