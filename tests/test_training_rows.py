"""Frozen rows → a training's rows: what each method learns, splits, fractions, flips, what is refused, lineage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import USER, World
from jobs import queue
from jobs.configs import TRAININGS, TrainConfig, parse_config
from jobs.freezing import freeze
from jobs.packing_training import learn, pack_training
from jobs.rows import best_answer
from jobs.runs import RunFolder
from jobs.steerlm import SENTENCE, attribute_string
from storage import pairs
from storage.adapters import add_adapter, get_adapter, list_adapters
from storage.errors import NotFound, UserError
from storage.records import METRICS, Dataset, DatasetRow, Image
from storage.samples import images_of
from storage.scores import add_judgement, ensure_rater
from test_freezing import by_rule, judge, scored

KINDS = [config.kind for config in TRAININGS]
SUPERVISED = ["steerlm", "rejection", "sft"]


def config(kind: str, **values: Any) -> TrainConfig:
    found = parse_config(kind, {"dataset": "first", "batch_size": 1, "global_batch": 1, **values})
    assert isinstance(found, TrainConfig)
    return found


def dataset(name: str = "first", digest: str = "ab" * 32) -> Dataset:
    return Dataset(1, name, digest, {}, {}, USER, "")


def messages(*images: str, text: str = "what?") -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def answer(text: str, *values: int) -> dict[str, Any]:
    return {"candidate_id": 1, "text": text, **dict(zip(METRICS, values or (1,) * 5, strict=True))}


def frozen_pair(position: int, split: Any = "train", images: Sequence[str] = (), **row: Any) -> DatasetRow:
    keys = list(images) or [f"sample:{position}"]
    content = {"messages": messages(*images), "images": keys, "chosen": f"good {position}"}
    return DatasetRow(position, split, position, position, {**content, "rejected": f"bad {position}", **row})


def frozen_sample(
    position: int,
    answers: Sequence[dict[str, Any]] = (),
    split: Any = "train",
    images: Sequence[str] = (),
    reference: str | None = "the reference",
    sample_id: int | None = None,
) -> DatasetRow:
    own = position if sample_id is None else sample_id
    content = {
        "messages": messages(*images),
        "images": list(images) or [f"sample:{own}"],
        "reference": reference,
        "rater": None,
        "answers": list(answers),
    }
    return DatasetRow(position, split, own, None, content, "sample")


def images_in(rows: Sequence[DatasetRow]) -> dict[str, Image]:
    shas = {sha for row in rows for sha in images_of(row.row["messages"])}
    return {sha: Image(sha, "png", 8, 8, 1) for sha in shas}


def learnt(
    kind: str, of_pairs: Sequence[DatasetRow] = (), samples: Sequence[DatasetRow] = (), **values: Any
) -> list[dict[str, Any]]:
    return learn(dataset(), of_pairs, samples, config(kind, **values), images_in([*of_pairs, *samples])).rows


def asked(row: dict[str, Any]) -> str:
    return str(row["messages"][-1]["content"][-1]["text"])


# --- the four methods (paper.md, section 4) ---


def test_steerlm_learns_every_scored_answer_after_its_own_values() -> None:
    answers = [answer("first", 4, 3, 2, 1, 0), answer("second", 0, 0, 0, 0, 0)]
    rows = learnt("steerlm", samples=[frozen_sample(1, answers, images=["aa"])])
    assert [row["answer"] for row in rows] == ["first", "second"]
    assert asked(rows[0]) == (
        "what?\n"
        "Please answer the question such that your response is in the following attributes "
        "in 5-point Likert scale:\n"
        "Helpfulness:4,Correctness:3,Coherence:2,Complexity:1,Verbosity:0"
    )
    assert asked(rows[1]).endswith("\nHelpfulness:0,Correctness:0,Coherence:0,Complexity:0,Verbosity:0")
    assert rows[0]["messages"][0]["content"][0] == {"type": "image", "image": "aa.png"}
    assert {key: rows[0][key] for key in ("kind", "split", "sample_id")} == {
        "kind": "answer",
        "split": "train",
        "sample_id": 1,
    }


def test_rejection_sampling_learns_the_best_answer() -> None:
    """Quality is helpfulness + correctness + coherence: complexity and verbosity say nothing."""
    answers = [
        answer("long", 2, 2, 2, 4, 4),
        answer("best", 3, 2, 2, 0, 0),
        answer("as good", 2, 3, 2, 0, 0),
        answer("  ", 4, 4, 4, 4, 4),
    ]
    rows = learnt("rejection", samples=[frozen_sample(1, answers)])
    assert [(row["answer"], asked(row)) for row in rows] == [("best", "what?")]


def test_sft_learns_the_reference() -> None:
    samples = [frozen_sample(1, [answer("x")]), frozen_sample(2, reference=None), frozen_sample(3, reference=" ")]
    assert [(row["answer"], asked(row)) for row in learnt("sft", samples=samples)] == [("the reference", "what?")]


def test_dpo_learns_pairs_and_reads_no_answers() -> None:
    of_pairs = [frozen_pair(1), frozen_pair(2, "heldout")]
    rows = learnt("dpo", of_pairs, [frozen_sample(3, [answer("x")], sample_id=1)])
    assert rows == [
        {
            "kind": "pair",
            "split": split,
            "sample_id": number,
            "pair_id": number,
            "messages": messages(),
            "chosen": f"good {number}",
            "rejected": f"bad {number}",
        }
        for number, split in ((1, "train"), (2, "heldout"))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_each_method_is_measured_on_pairs(kind: str) -> None:
    """Held-out answers for the loss, pairs held out and for the report; SteerLM's are asked with the best."""
    of_pairs = [frozen_pair(number, "heldout") for number in range(1, 9)]
    samples = [frozen_sample(8 + n, [answer("x")], "heldout", sample_id=n) for n in range(1, 9)]
    of_pairs.append(frozen_pair(20))
    samples.append(frozen_sample(40, [answer("x")], sample_id=20))
    rows = learnt(kind, of_pairs, samples)
    found = {(row["kind"], row["split"]) for row in rows}
    held_out = {("pair", "heldout"), ("pair", "report")}
    own = {("pair", "train")} if kind == "dpo" else {("answer", "train"), ("answer", "heldout")}
    assert found == held_out | own
    assert sum(row["split"] == "report" for row in rows) == 4
    reported = {row["sample_id"] for row in rows if row["split"] == "report"}
    assert not reported & {row["sample_id"] for row in rows if row["kind"] == "answer"}
    best = f"\n{SENTENCE}\n{attribute_string()}" if kind == "steerlm" else ""
    assert {asked(row) for row in rows if row["kind"] == "pair"} == {f"what?{best}"}


_answers = st.lists(
    st.builds(
        lambda text, values: answer(text, *values),
        st.sampled_from(["", " \n", "a", "b", "c"]),
        st.lists(st.integers(0, 4), min_size=5, max_size=5),
    ),
    max_size=6,
)


@given(answers=_answers)
def test_rows_of_any_answers(answers: list[dict[str, Any]]) -> None:
    spoken = [one for one in answers if one["text"].strip()]
    best = best_answer(answers)
    if not spoken:
        assert best is None
        for kind in ("steerlm", "rejection"):
            with pytest.raises(UserError, match="nothing to train on"):
                learnt(kind, samples=[frozen_sample(1, answers)])
        return
    rows = learnt("steerlm", samples=[frozen_sample(1, answers)])
    assert [row["answer"] for row in rows] == [one["text"] for one in spoken]
    assert [asked(row).split("\n")[-1] for row in rows] == [
        ",".join(f"{metric.capitalize()}:{one[metric]}" for metric in METRICS) for one in spoken
    ]
    qualities = [sum(one[metric] for metric in METRICS[:3]) for one in spoken]
    assert best == spoken[qualities.index(max(qualities))]["text"]


# --- splits ---


def held(groups: Sequence[Sequence[str]], paired: int) -> tuple[list[DatasetRow], list[DatasetRow]]:
    """Held-out rows with these images: so many pairs, the rest samples; and one of each to train on."""
    of_pairs = [frozen_pair(0, images=["train"])]
    of_pairs += [frozen_pair(1 + n, "heldout", groups[n]) for n in range(paired)]
    samples = [frozen_sample(100, [answer("x")], images=["train"])]
    rest = range(paired, len(groups))
    samples += [frozen_sample(101 + n, [answer("x")], "heldout", groups[n]) for n in rest]
    return of_pairs, samples


_images = st.lists(st.integers(0, 15).map(str), min_size=1, max_size=2, unique=True)


@settings(deadline=None)
@given(groups=st.lists(_images, max_size=14), data=st.data(), share=st.floats(0, 0.99))
def test_no_image_is_in_two_splits(groups: list[list[str]], data: st.DataObject, share: float) -> None:
    paired = data.draw(st.integers(0, len(groups)))
    of_pairs, samples = held(groups, paired)
    for kind in ("dpo", "steerlm"):
        rows = learnt(kind, of_pairs, samples, report_share=share)
        splits: dict[str, set[str]] = {}
        for row in rows:
            for part in row["messages"][0]["content"]:
                if part["type"] == "image":
                    splits.setdefault(part["image"], set()).add(row["split"])
        assert all(len(found) == 1 for found in splits.values())
        kept = [row["split"] for row in rows if row["kind"] == "pair" and row["split"] != "train"]
        assert len(kept) == paired, "no pair is lost"
        assert not paired or "heldout" in kept, "something is left to choose by"
    names = {image for images in groups for image in images}
    if len(names) == sum(map(len, groups)) and paired:  # nothing is shared: the share is exact
        assert kept.count("report") == min(round(paired * share), paired - 1)


def test_one_image_is_not_divided() -> None:
    of_pairs = [frozen_pair(0), *(frozen_pair(n, "heldout", ["same"]) for n in range(1, 7))]
    assert [row["split"] for row in learnt("dpo", of_pairs)] == ["train", *["heldout"] * 6]


def test_all_runs_on_a_data_set_share_the_division() -> None:
    of_pairs = [frozen_pair(0), *(frozen_pair(n, "heldout") for n in range(1, 21))]
    samples = [frozen_sample(100 + n, [answer("x")], row.split, sample_id=n) for n, row in enumerate(of_pairs)]

    def reported(kind: str, **values: Any) -> set[int]:
        rows = learnt(kind, of_pairs, samples, **values)
        return {row["sample_id"] for row in rows if row["split"] == "report"}

    first = reported("dpo")
    assert len(first) == 10
    for kind in KINDS:
        assert reported(kind, seed=5, learning_rate=0.1) == first
    other = learn(dataset(digest="cd" * 32), of_pairs, samples, config("dpo"), {}).rows
    assert {row["sample_id"] for row in other if row["split"] == "report"} != first
    assert reported("dpo", report_share=0) == set()


# --- fractions and flips ---

_shares = st.floats(0.01, 1.0)


@settings(deadline=None)
@given(count=st.integers(1, 40), shares=st.tuples(_shares, _shares), kind=st.sampled_from(KINDS))
def test_fractions_are_nested(count: int, shares: tuple[float, float], kind: str) -> None:
    of_pairs = [frozen_pair(n) for n in range(count)]
    samples = [frozen_sample(100 + n, [answer(f"answer {n}")], sample_id=n) for n in range(count)]

    def taken(fraction: float, seed: int = 0) -> list[int]:
        rows = learnt(kind, of_pairs, samples, fraction=fraction, seed=seed)
        return [row["sample_id"] for row in rows if row["split"] == "train"]

    less, more = (taken(share) for share in sorted(shares))
    assert set(less) <= set(more)
    assert len(less) == max(1, round(count * min(shares)))
    assert less == sorted(less), "the data set's order stays"
    assert less == taken(min(shares), seed=9), "the data set decides, not the run's seed"
    assert taken(1.0) == list(range(count))


@settings(deadline=None)
@given(count=st.integers(1, 40), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), fraction=_shares)
def test_flips_are_nested(count: int, shares: tuple[float, float], fraction: float) -> None:
    of_pairs = [frozen_pair(n) for n in range(count)] + [frozen_pair(100, "heldout")]

    def turned(flip: float) -> set[int]:
        rows = learnt("dpo", of_pairs, flip=flip, fraction=fraction)
        for row in rows:
            right = (f"good {row['sample_id']}", f"bad {row['sample_id']}")
            assert (row["chosen"], row["rejected"]) == (right[::-1] if row.get("flipped") else right)
            assert not row.get("flipped") or row["split"] == "train"
        flipped = {row["sample_id"] for row in rows if row.get("flipped")}
        assert len(flipped) == round((len(rows) - 1) * flip)
        return flipped

    less, more = (turned(share) for share in sorted(shares))
    assert less <= more


def test_a_held_out_row_is_in_every_fraction() -> None:
    of_pairs = [frozen_pair(n, "train" if n % 2 else "heldout") for n in range(20)]
    rows = learnt("dpo", of_pairs, fraction=0.1)
    assert sum(row["split"] != "train" for row in rows) == 10


# --- what cannot be trained on ---


def test_a_data_set_with_one_pair_is_enough() -> None:
    assert [row["split"] for row in learnt("dpo", [frozen_pair(0)], fraction=0.01)] == ["train"]


def test_one_pair_from_the_page_to_the_run_folder(world: World) -> None:
    scored(world, 1)
    by_rule(world)
    freeze(world.db, USER, "first")
    for kind in KINDS:
        freight = pack_training(world.db, config(kind))
        assert {row["split"] for row in freight.rows} == {"train"}, kind


@pytest.mark.parametrize("kind", SUPERVISED)
def test_a_set_from_before_answers_were_kept_says_what_to_do(kind: str) -> None:
    with pytest.raises(
        UserError, match=f"'first' was frozen before .* by {kind}. Freeze its pairs again on the Pa"
    ):
        learnt(kind, [frozen_pair(0)])
    assert learnt("dpo", [frozen_pair(0)])


@pytest.mark.parametrize(
    ("kind", "of_pairs", "samples", "said"),
    [
        ("dpo", [frozen_pair(0, "heldout")], [], "it has no pairs there. Freeze one with more"),
        ("dpo", [], [], "it has no pairs there"),
        ("dpo", [frozen_pair(0, chosen=" ")], [], "in every pair an answer is empty. Make pairs"),
        ("dpo", [frozen_pair(0, rejected="")], [], "in every pair an answer is empty"),
        ("steerlm", [], [frozen_sample(1)], "none of its 1 samples there has an answer that is scored"),
        ("rejection", [], [frozen_sample(1)], "Judge or score the candidates"),
        ("steerlm", [], [frozen_sample(1, [answer("")])], "all of its scored answers are empty. Generate"),
        ("rejection", [], [frozen_sample(1, [answer(" ")])], "all of its scored answers are empty"),
        ("sft", [], [frozen_sample(1, [answer("x")], reference=None)], "has a reference answer. Import"),
        ("sft", [], [frozen_sample(1, reference=" ")], "has a reference answer"),
        ("sft", [], [frozen_sample(1, split="heldout")], "none of its 0 samples there"),
    ],
)
def test_nothing_to_train_on_is_told(
    kind: str, of_pairs: list[DatasetRow], samples: list[DatasetRow], said: str
) -> None:
    with pytest.raises(UserError, match=f"'first' has nothing to train on by {kind}: .*{said}"):
        learnt(kind, of_pairs, samples)


def test_an_empty_answer_among_others_is_left_out_and_counted() -> None:
    of_pairs = [frozen_pair(0), frozen_pair(1, rejected=""), frozen_pair(2, "heldout", chosen="")]
    found = learn(dataset(), of_pairs, (), config("dpo"), {})
    assert ([row["sample_id"] for row in found.rows], found.empty) == ([0], 2)
    samples = [frozen_sample(1, [answer("x"), answer("")]), frozen_sample(2, [answer(" ")], reference="")]
    counts = {kind: learn(dataset(), (), samples, config(kind), {}).empty for kind in SUPERVISED}
    assert counts == {"steerlm": 2, "rejection": 1, "sft": 1}


def test_all_answers_empty_is_refused_at_the_queue(world: World, no_supervisor: None) -> None:
    sample = world.sample()
    candidates = world.candidates(sample, ["yes", "no", "", " "])
    pairs.choose_by_hand(world.db, USER, candidates[0].id, candidates[1].id)
    judge(world, sample, candidates[2:], (9, 1))
    freeze(world.db, USER, "first", heldout_percent=0)
    for kind in ("steerlm", "rejection"):
        with pytest.raises(UserError, match="all of its scored answers are empty"):
            queue.submit(world.db, world.settings, kind, {"dataset": "first"}, USER)
    assert not list(world.folder.runs.iterdir())


# --- the run folder ---


def adapter(world: World, method: str = "sft", model: str = "demo") -> int:
    job = world.job(method)
    sha256 = f"{job.id:064x}"
    add_adapter(world.db, job, "before", sha256, 1, model, method)
    folder = world.folder.adapters / sha256
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return max(one.id for one in list_adapters(world.db))


def read_lineage(run: RunFolder) -> dict[str, Any]:
    return dict(json.loads(run.lineage.read_text(encoding="utf-8")))


def test_the_lineage_tells_where_the_labels_come_from(world: World, no_supervisor: None) -> None:
    for number in range(1, 21):
        scored(world, number)
    by_rule(world)
    frozen = freeze(world.db, USER, "first", heldout_percent=40)
    start = adapter(world)
    began = get_adapter(world.db, start)
    values = {"dataset": "first", "fraction": 0.5, "flip": 0.5, "start_adapter": start}
    job = queue.submit(world.db, world.settings, "dpo", values, USER)
    run = RunFolder(world.folder.run(job.id))
    told = read_lineage(run)
    assert told["dataset"]["hash"] == frozen.hash == run.job().dataset_hash
    assert told["dataset"]["rule"] == frozen.rule
    assert told["raters"] == frozen.rule["raters"]
    assert told["rubrics"] == ["plumb-1"]
    assert told["rows"] == {"pair": {"train": 6, "heldout": 4, "report": 4}, "answer": {}}
    assert (told["training_rows"], told["fraction"], told["flipped"], told["left_out"]) == (12, 0.5, 3, 0)
    assert told["start_adapter"] == {
        "id": start,
        "name": "before",
        "sha256": began.sha256,
        "method": "sft",
        "job": began.job_id,
        "dataset": None,
    }
    rows = list(run.rows())
    assert sum(row.get("flipped", False) for row in rows) == 3
    assert (run.start_adapter(began.sha256) / "adapter_model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_folder_holds_the_images_that_its_rows_show(world: World, no_supervisor: None, kind: str) -> None:
    for number in range(1, 11):
        scored(world, number, images=number % 3)
    by_rule(world)
    freeze(world.db, USER, "first", heldout_percent=20)
    job = queue.submit(world.db, world.settings, kind, {"dataset": "first", "fraction": 0.3}, USER)
    run = RunFolder(world.folder.run(job.id))
    shown = {
        part["image"] for row in run.rows() for part in row["messages"][0]["content"] if part["type"] == "image"
    }
    assert {path.name for path in run.images.iterdir()} == shown
    assert read_lineage(run)["start_adapter"] is None


def test_an_adapter_to_start_from_must_fit(world: World) -> None:
    scored(world, 1)
    by_rule(world)
    freeze(world.db, USER, "first", heldout_percent=0)
    other = adapter(world, model="owner/other")
    with pytest.raises(UserError, match="trained on 'owner/other', not on 'demo'; set the base model to"):
        pack_training(world.db, config("sft", start_adapter=other))
    with pytest.raises(NotFound, match="no adapter 99"):
        pack_training(world.db, config("sft", start_adapter=99))
    with pytest.raises(NotFound, match="no data set named 'second'"):
        pack_training(world.db, config("sft", dataset="second"))


def test_an_answer_scored_by_a_person_alone_is_learnt(world: World) -> None:
    """One completely scored candidate is enough for SteerLM, where a pair needs two."""
    scored(world, 1)
    by_rule(world)
    sample = world.sample(2)
    (candidate,) = world.candidates(sample, ["alone"])
    rater = ensure_rater(world.db, "person", "grace")
    scores = [{"candidate_id": candidate.id, **dict.fromkeys(METRICS, 3)}]
    add_judgement(world.db, rater_id=rater, sample_id=sample, job_id=None, state="ok", scores=scores)
    freeze(world.db, USER, "first", heldout_percent=0)
    rows = pack_training(world.db, config("steerlm")).rows
    assert [row["answer"] for row in rows if row["sample_id"] == sample] == ["alone"]


def test_the_samples_of_a_data_set_are_those_with_pairs_and_those_with_scores(
    world: World, no_supervisor: None
) -> None:
    scored(world, 1)
    scored(world, 2, (5, 5))
    world.sample(3)
    by_rule(world)
    freeze(world.db, USER, "first", heldout_percent=0)
    selection = {"dataset": "first", "only_missing": False}
    job = queue.submit(world.db, world.settings, "generate", {"samples": selection}, USER)
    rows = RunFolder(world.folder.run(job.id)).rows()
    assert [row["sample_id"] for row in rows] == [1, 2]
