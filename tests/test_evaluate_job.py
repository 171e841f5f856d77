"""The evaluate job on the tiny LLaVA and a tiny language model: every item once, resumed, graded, refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from factories import USER, World
from jobs import queue
from jobs.benchmarks.contract import Item
from jobs.benchmarks.measures import Graded
from jobs.benchmarks.registry import BENCHMARKS
from jobs.configs import EvaluateConfig, parse_config
from jobs.events import drain
from jobs.grading import GRADES, with_reasons
from jobs.packing_evaluation import chosen
from jobs.runs import RunFolder
from jobs.steerlm import SENTENCE
from jobs.worker import work
from judging import MODEL, terms
from openai_server import OpenAiServer
from storage import evaluations as store
from storage import jobs as jobs_store
from storage.errors import NotFound, UserError
from storage.lifecycle import JobStatus
from test_generate_job import ended, make_adapter

CONFIG = {"benchmark": "pope", "dtype": "float32", "max_new_tokens": 4, "batch_size": 3}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def item_row(number: int, messages: list[Any], *following: str, **more: Any) -> dict[str, Any]:
    made = {"number": number, "id": f"random/{number}", "unit": "", "categories": ["random"], "reference": []}
    made |= {
        "temperature": 0.0,
        "extra": {"label": "yes" if number % 2 else "no", "place": 0, "sets": 1},
        "messages": messages,
    }
    return {**made, "following": [[{"type": "text", "text": one}] for one in following], "method": "", **more}


def evaluate_run(folder: Path, count: int = 7, adapter: Path | None = None, **changes: Any) -> RunFolder:
    images = [tiny.store(folder.parent / "images", tiny.picture(colour)) for colour in ("red", "blue")]
    names = [name for name, _ in images]
    rows = [item_row(n + 1, tiny.ask(f"is it {n}?" + " so" * (n % 3), names[n % 2])) for n in range(count)]
    rows = changes.pop("rows", rows)
    config = {**CONFIG, **changes, **({} if adapter is None else {"adapter": 5})}
    return tiny.frozen_run(folder, "evaluate", config, rows, images, None if adapter is None else {5: adapter})


def said(run: RunFolder) -> dict[tuple[int, int], str]:
    found = tiny.events(run, "item_answer")
    texts = {(one["number"], one["turn"]): one["text"] for one in found}
    assert len(texts) == len(found), "an item was answered twice"
    return texts


def test_every_item_is_answered_and_graded(tmp_path: Path) -> None:
    run = evaluate_run(tmp_path / "run")
    assert work(run.path) == 0, ended(run)
    assert said(run).keys() == {(n, 0) for n in range(1, 8)}
    (told,) = tiny.events(run, "grading")
    assert (told["grader"], told["file"]) == ("rules", GRADES)
    grades = json.loads((run.path / GRADES).read_text())["grades"]
    assert [one["id"] for one in grades] == [f"random/{n}" for n in range(1, 8)]
    assert all(one["sums"] is not None for one in grades)
    done = [(one["done"], one["total"]) for one in tiny.events(run, "progress")]
    assert done == [(0, 7), (3, 7), (6, 7), (7, 7)]


def test_one_by_one_they_are_the_same(tmp_path: Path) -> None:
    together, alone = (evaluate_run(tmp_path / str(size), batch_size=size) for size in (7, 1))
    for run in (together, alone):
        assert work(run.path) == 0
    assert said(together) == said(alone)


def test_what_was_answered_is_not_answered_again(tmp_path: Path) -> None:
    whole, torn = evaluate_run(tmp_path / "whole"), evaluate_run(tmp_path / "torn")
    assert work(whole.path) == 0
    lines = whole.events.read_bytes().split(b"\n")
    kept = [line for line in lines if b'"item_answer"' in line][:4]
    torn.events.write_bytes(b"\n".join(kept) + b"\n")
    assert work(torn.path) == 0
    made = [line for line in torn.events.read_bytes().split(b"\n") if b'"item_answer"' in line]
    assert made[:4] == kept
    assert len(made) == 7
    assert said(torn) == said(whole)
    assert json.loads((torn.path / GRADES).read_text()) == json.loads((whole.path / GRADES).read_text())


def test_an_adapter_says_other_things_and_steerlms_is_asked_with_its_string(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "made" / "adapter")
    base, tuned = evaluate_run(tmp_path / "base"), evaluate_run(tmp_path / "tuned", adapter=adapter)
    rows = [{**one, "method": "steerlm"} for one in tuned.rows()]
    steered = evaluate_run(tmp_path / "steered", adapter=adapter, rows=rows)
    for run in (base, tuned, steered):
        assert work(run.path) == 0, ended(run)
    assert said(base) != said(tuned) != said(steered)
    assert SENTENCE  # the string itself is tested in test_steerlm


def test_two_turns_and_a_prompt_that_is_too_long(tmp_path: Path) -> None:
    rows = [
        item_row(1, tiny.ask("what?"), "and why?"),
        item_row(2, tiny.ask("what " * 4000)),
    ]
    run = evaluate_run(tmp_path / "run", rows=rows)
    assert work(run.path) == 0, ended(run)
    assert said(run).keys() == {(1, 0), (1, 1)}
    assert "random/2 is left out" in " ".join(one["text"] for one in tiny.events(run, "note"))
    grades = json.loads((run.path / GRADES).read_text())["grades"]
    assert [one["sums"] is None for one in grades] == [False, True]


def test_a_language_model_reads_text_and_is_not_shown_pictures(tmp_path: Path, text_model: Path) -> None:
    words = [item_row(n, tiny.ask(f"what {n}?")) for n in (1, 2, 3)]
    run = evaluate_run(tmp_path / "run", rows=words, model=str(text_model))
    assert work(run.path) == 0, ended(run)
    assert said(run).keys() == {(1, 0), (2, 0), (3, 0)}
    alone = evaluate_run(tmp_path / "alone", rows=words[2:], model=str(text_model))
    assert work(alone.path) == 0
    assert said(alone)[3, 0] == said(run)[3, 0], "padding changes nothing"
    seeing = evaluate_run(tmp_path / "seeing", model=str(text_model))
    assert work(seeing.path) == 1
    assert "reads text alone" in ended(seeing)["reason"]


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = (
        "{% for one in messages %}{{ one['role'] + ' ' + one['content'] + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    folder = tmp_path_factory.mktemp("text") / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# through the queue and back -----------------------------------------------------------------------------------


def start(world: World, **changes: Any) -> tuple[Any, RunFolder]:
    values = {**CONFIG, "benchmark": "easy-vqa", "limit": 6, "model": str(tiny.tiny_llava()), **changes}
    prepared = queue.prepare(world.db, world.settings, parse_config("evaluate", values))
    job = queue.enqueue(world.db, world.settings, prepared, USER)
    return job, RunFolder(world.folder.run(job.id))


def finish(world: World, job: Any, run: RunFolder) -> None:
    jobs_store.move(world.db, job.id, JobStatus.STARTING)
    attempt = jobs_store.start_attempt(world.db, job.id)
    assert work(run.path) == 0, ended(run)
    drain(world.db, world.folder, attempt.id)


def test_an_evaluation_stands_in_the_database_with_its_grades(world: World) -> None:
    job, run = start(world)
    held = store.evaluation_of_job(world.db, job.id)
    assert held is not None
    assert (held.benchmark, held.answers, held.purpose) == ("easy-vqa", 0, "reporting")
    finish(world, job, run)
    held = store.get_evaluation(world.db, held.id)
    assert held.answers == held.items >= 6
    (grading,) = store.gradings_of(world.db, [held.id])
    assert grading.grader == "rules"
    assert len(store.grades_of(world.db, grading.id)) == grading.grades + grading.failures

    again = queue.prepare(world.db, world.settings, parse_config("grade", {"evaluation": held.id}))
    job = queue.enqueue(world.db, world.settings, again, USER)
    finish(world, job, RunFolder(world.folder.run(job.id)))
    second, first = store.gradings_of(world.db, [held.id])
    assert store.grades_of(world.db, first.id) == store.grades_of(world.db, second.id), "graded again, the same"
    assert second.job_id == job.id


def test_halves_share_nothing(world: World) -> None:
    names = {}
    for half in ("selection", "reporting", "all"):
        job, _ = start(world, half=half, limit=None)
        held = store.evaluation_of_job(world.db, job.id)
        assert held is not None
        assert held.purpose == ("selection" if half == "selection" else "reporting")
        names[half] = {one["unit"] or one["id"] for one in store.items_of(world.db, held)}
    assert names["selection"] | names["reporting"] == names["all"]
    assert not names["selection"] & names["reporting"]


def test_attributes_are_told_where_they_are_not_the_usual_ones() -> None:
    usual = parse_config("evaluate", {})
    other = parse_config("evaluate", {"attributes": {"verbosity": 1}})
    assert isinstance(usual, EvaluateConfig)
    assert isinstance(other, EvaluateConfig)
    assert "attributes" not in usual.settings()
    assert other.settings()["attributes"] == "4,4,4,4,1"


def test_subsets_are_nested_and_of_all_kinds() -> None:
    items = BENCHMARKS["text-tasks"].read(None, None, Path())
    few, more = (chosen(items, "all", limit) for limit in (12, 60))
    assert {one.id for one in few} < {one.id for one in more}
    assert (len(few), len(more)) == (12, 60)
    assert len({one.id.split("/")[1] for one in more}) == 10, "no instruction is left out"
    twins = chosen(BENCHMARKS["easy-vqa"].read(None, None, Path()), "all", 20)
    assert len(twins) == 20
    assert len({one.unit for one in twins}) == 10, "a picture's twins stay together"


def test_what_cannot_be_started(world: World, tmp_path: Path) -> None:
    for values, told in (
        ({"benchmark": "nonsense"}, "benchmark = 'nonsense'"),
        ({"benchmark": "pope", "files": str(tmp_path / "gone.json")}, "gone.json"),
        ({"outside": "no endpoint"}, "MODEL@ENDPOINT"),
        ({"adapter": 3, "outside": "a@b"}, "leave one empty"),
    ):
        with pytest.raises(UserError, match=told):
            start(world, **values)
    with pytest.raises(NotFound, match="no evaluation 9"):
        queue.prepare(world.db, world.settings, parse_config("grade", {"evaluation": 9}))
    job, _ = start(world)
    held = store.evaluation_of_job(world.db, job.id)
    assert held is not None
    with pytest.raises(UserError, match=f"no answers to grade; wait for job {job.id}"):
        queue.prepare(world.db, world.settings, parse_config("grade", {"evaluation": held.id}))


def test_every_benchmark_can_be_graded_one_way_or_the_other() -> None:
    for one in BENCHMARKS.values():
        assert one.grade or one.requests
        assert bool(one.requests) == bool(one.grade_replies)
        assert one.headline in one.measures


# a judge ------------------------------------------------------------------------------------------------------


def test_a_judge_grades_and_its_silence_is_no_grade(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """MT-Bench's items as the database holds them, a judge on a local endpoint."""
    job, run = start(world, benchmark="mt-bench", files=str(_mt_bench(world)), limit=None)
    finish(world, job, run)
    held = store.evaluation_of_job(world.db, job.id)
    assert held is not None
    terms(world)
    with OpenAiServer(models=None) as server:
        server.answer = lambda body: "Good. Rating: [[7]]" if "blue" in json.dumps(body) else "I can't say."
        monkeypatch.setenv("PLUMB_OPENAI_URL", server.url)
        settings = world.settings.model_copy(update={"openai_url": server.url})
        config = parse_config("grade", {"evaluation": held.id, "judge": "openai", "model": MODEL, "budget": 1.0})
        job = queue.enqueue(world.db, settings, queue.prepare(world.db, settings, config), USER)
        finish(world, job, RunFolder(world.folder.run(job.id)))
    grading = store.gradings_of(world.db, [held.id])[0]
    assert grading.grader == f"{MODEL} (openai)"
    grades = {one.id: one for one in store.grades_of(world.db, grading.id)}
    assert grades["1/1"].sums == (7.0, 1.0)
    assert grades["2/1"].sums is None
    assert grades["2/1"].why
    assert any("[[7]]" in words for _, words in store.replies_of(world.db, grading.id).values())


def test_why_a_judge_failed_is_told_with_its_own_item_alone() -> None:
    def item(name: str, unit: str) -> Item:
        return Item(name, (), unit=unit)

    items = [item("1", "a.png"), item("2", "a.png"), item("1000005", "5"), item("5", "5"), item("81", "")]
    graded = [
        Graded("1", None, unit="a.png", why="no reply"),
        Graded("2", None, unit="a.png", why="no reply"),
        Graded("5", None, why="no reply"),
        Graded("81/1", None, unit="81", why="no reply"),
    ]
    said = {
        name: {"item": item_id, "state": "blocked", "reason": f"for {item_id}."}
        for name, item_id in (("x", "2"), ("y", "1000005"), ("z", "81"))
    }
    whys = [one.why for one in with_reasons(graded, said, items)]
    assert whys[0] == "no reply", "it shares no more than a picture with the one that failed"
    assert ["for 2." in whys[1], "for 1000005." in whys[2], "for 81." in whys[3]] == [True] * 3


def _mt_bench(world: World) -> Path:
    folder = world.folder.root / "mt"
    folder.mkdir()
    questions = [
        {"question_id": 1, "category": "writing", "turns": ["say blue", "and blue again"]},
        {"question_id": 2, "category": "writing", "turns": ["say red", "and red again"]},
    ]
    template = "[Question]\n{question}\n[Answer]\n{answer}"
    two = "{question_1}\n{answer_1}\n{question_2}\n{answer_2}"
    prompts = [
        {"name": name, "system_prompt": "Judge.", "prompt_template": two if "multi" in name else template}
        for name in ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
    ]
    for name, rows in (("question", questions), ("judge_prompts", prompts)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reference = {"question_id": 3, "choices": [{"turns": ["a", "b"]}]}
    (folder / "reference_answer_gpt-4.jsonl").write_text(json.dumps(reference))
    return folder
