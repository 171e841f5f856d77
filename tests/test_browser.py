"""The whole way in Chromium: load the demo → generate → judge → score by hand → pairs → freeze → DPO → chat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from browser import Tour, browsing, serving
from storage.database import session
from storage.easy_vqa import load_questions
from storage.folder import DataFolder
from storage.jobs import metrics_of
from storage.rows import count, rows
from storage.upkeep import check

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("chromium")]


def test_from_an_empty_folder_to_two_answers(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as address, browsing() as page:
        tour = Tour(page, address)
        tour.load_demo(24)
        tour.start("generate", seconds=300)
        tour.start("judge", seconds=60)
        tour.score_first((0, 1, 2, 3, 4))
        pairs = tour.make_pairs()
        tour.freeze("first", heldout=20)
        job = tour.start("dpo", seconds=400, dataset="first", **{"At most steps": "3"})
        image = load_questions("test")[0].image
        with_image = tour.chat("what shape is in the image?", image)
        text_alone = tour.chat("Write two sentences about the sea.")
        assert with_image[0] != "" != with_image[1]
        assert text_alone[0] != "" != text_alone[1]
        assert page.problems == []

    folder = DataFolder(data)
    with session(folder) as db:
        assert count(db, "SELECT count(*) FROM samples") == 24
        assert count(db, "SELECT count(*) FROM candidates") == 24 * 4
        own = rows(
            db,
            "SELECT s.helpfulness, s.verbosity FROM scores s JOIN judgements j ON j.id = s.judgement_id"
            " JOIN raters r ON r.id = j.rater_id WHERE r.kind = 'person'",
        )
        assert own == [{"helpfulness": 0, "verbosity": 4}], "one act, kept apart from the judge's"
        assert count(db, "SELECT count(*) FROM pairs WHERE status = 'accepted'") == pairs > 0
        assert {"loss", "reward_margin", "reward_accuracy"} <= metrics_of(db, job).keys()
        assert len(metrics_of(db, job)["loss"]) == 3
        turns = rows(db, "SELECT column_number, adapter_id, finish, content FROM turns WHERE role = 'assistant'")
        assert [turn["column_number"] for turn in turns] == [0, 1, 0, 1]
        assert [turn["adapter_id"] for turn in turns] == [None, 1, None, 1], "base on the left, adapter right"
        assert all(turn["finish"] in ("stop", "length") for turn in turns), "nothing broke off"
        assert all(json.loads(turn["content"])[0]["text"].strip() for turn in turns)
        # The arrow from an answer of the chat back to the labels: adapter → job → data set → pair → judgement.
        lineage = rows(
            db,
            "SELECT DISTINCT r.name FROM turns t JOIN adapters a ON a.id = t.adapter_id"
            " JOIN dataset_rows d ON d.dataset_id = a.dataset_id"
            " JOIN pair_judgements p ON p.pair_id = d.pair_id"
            " JOIN judgements j ON j.id = p.judgement_id JOIN raters r ON r.id = j.rater_id",
        )
        assert {"name": "easy-vqa-rules"} in lineage
        assert check(db, folder) == []
