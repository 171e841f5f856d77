"""What is looked at along a run: the numbers against ones made by hand, and that looking changes nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from torch import nn

import tiny
import tiny_models
import tiny_vlms
from jobs.gpu.answering import end_tokens
from jobs.gpu.answers import side_by_side, watched_rows
from jobs.gpu.frames import answer_frame, answer_ids
from jobs.gpu.prompts import encode, from_run
from jobs.gpu.scoring import blanked, reward_metrics
from jobs.gpu.trainers import noise, undisturbed
from jobs.gpu.watching import divergence, some
from jobs.runs import RunFolder
from jobs.worker import work
from test_dpo_job import FAST, HELD_OUT, TIMED, dpo_run, last_end, metrics, pair
from test_resume import apart, uneven_run
from test_sft_job import answer, sft_run
from test_sft_job import pair as sft_pair

pytestmark = pytest.mark.slow  # as a whole: see the marker in pyproject.toml


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Against numbers made by hand


@dataclass
class Plain:
    """transformers' own models: the base, and the same with the run's adapter."""

    base: Any
    policy: Any
    processor: Any

    def logits(self, model: Any, run: RunFolder, row: dict[str, Any], side: str, blank: bool = False) -> Any:
        """Log-probabilities where `model` predicts an answer, (tokens, words), and the answer's tokens."""
        messages = from_run(run, row["messages"])
        encoded = encode(self.processor, [messages])
        ends = end_tokens(model, self.processor.tokenizer)
        ids = answer_ids(self.processor, row[side], answer_frame(self.processor, messages, ends))
        images = {"pixel_values": encoded["pixel_values"]} if "pixel_values" in encoded else {}
        if blank:
            images = {"pixel_values": torch.zeros_like(encoded["pixel_values"])}
        whole = torch.cat([encoded["input_ids"], torch.tensor([ids])], dim=1)
        with torch.no_grad():
            found = model(input_ids=whole, **images).logits[0]
        return found[-len(ids) - 1 : -1].log_softmax(dim=-1), torch.tensor(ids)

    def score(self, model: Any, *arguments: Any) -> float:
        words, ids = self.logits(model, *arguments)
        return float(words.gather(1, ids[:, None]).sum())


def plain(run: RunFolder) -> Plain:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    def load() -> Any:
        return AutoModelForImageTextToText.from_pretrained(tiny.tiny_llava(), dtype=torch.float32).eval()

    processor = AutoProcessor.from_pretrained(tiny.tiny_llava())
    return Plain(load(), PeftModel.from_pretrained(load(), run.adapter).eval(), processor)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("watching") / "run"
    names = [tiny.store(folder.parent / "images", tiny.picture(colour))[0] for colour in ("red", "blue", "green")]
    rows = [pair(number, names[: number % 3]) for number in range(8)]
    # Held-out rows without an image are among them: they have no blanked twin.
    rows += [pair(number, names[: number % 3], "heldout") for number in range(20, 26)]
    rows += [pair(number, names[:1], "report", chosen="yes " * (number - 29)) for number in range(30, 33)]
    run = dpo_run(folder, {**FAST, "beta": 0.3}, rows)
    assert work(run.path) == 0, last_end(run)
    return run


def by_hand(run: RunFolder, split: str, beta: float, blank: bool = False, shown: bool = False) -> dict[str, float]:
    models = plain(run)
    rows = [row for row in run.rows() if row["split"] == split and row.get("kind", "pair") == "pair"]
    if blank or shown:
        rows = [row for row in rows if any(part["type"] == "image" for part in row["messages"][-1]["content"])]
    scores = [
        [models.score(models.policy, run, row, side, blank) for row in rows] for side in ("chosen", "rejected")
    ]
    known = [[models.score(models.base, run, row, side, blank) for row in rows] for side in ("chosen", "rejected")]
    rewards = [
        [beta * (ours - theirs) for ours, theirs in zip(*both, strict=True)]
        for both in zip(scores, known, strict=True)
    ]
    margins = [chosen - rejected for chosen, rejected in zip(*rewards, strict=True)]
    count = len(rows)
    return {
        "reward_chosen": sum(rewards[0]) / count,
        "reward_rejected": sum(rewards[1]) / count,
        "reward_margin": sum(margins) / count,
        "reward_accuracy": sum(margin > 0 for margin in margins) / count,
        "logp_chosen": sum(scores[0]) / count,
        "logp_rejected": sum(scores[1]) / count,
        "loss": sum(math.log1p(math.exp(-margin)) for margin in margins) / count,
    }


def test_held_out_and_reported_numbers_are_those_made_by_hand(trained: RunFolder) -> None:
    step, told = metrics(trained, "heldout_loss")[-1]
    assert step == 8
    for name, value in by_hand(trained, "heldout", 0.3).items():
        assert told[f"heldout_{name}"] == pytest.approx(value, abs=1e-3)
    ((at, reported),) = metrics(trained, "report_loss")
    assert at == 8
    for name, value in by_hand(trained, "report", 0.3).items():
        assert reported[f"report_{name}"] == pytest.approx(value, abs=1e-3)
    # "yes " once, twice, three times, an end token each; "no" and an end token.
    tokens = {"report_chosen_tokens": (3 + 7 + 11) / 3 + 1, "report_rejected_tokens": 3.0}
    assert {name: reported[name] for name in tokens} == pytest.approx(tokens)


def test_the_blanked_margin_blanks_the_reference_too(trained: RunFolder) -> None:
    told = metrics(trained, "heldout_blank_margin")[-1][1]["heldout_blank_margin"]
    blank = by_hand(trained, "heldout", 0.3, blank=True)["reward_margin"]
    assert told == pytest.approx(blank, abs=1e-3)
    assert abs(blank - by_hand(trained, "heldout", 0.3)["reward_margin"]) > 1e-2


def test_the_margin_beside_the_blanked_one_is_of_the_same_pairs(trained: RunFolder) -> None:
    told = metrics(trained, "heldout_shown_margin")[-1][1]
    shown = by_hand(trained, "heldout", 0.3, shown=True)["reward_margin"]
    assert told["heldout_shown_margin"] == pytest.approx(shown, abs=1e-3)
    assert abs(shown - told["heldout_reward_margin"]) > 1e-3, "some held-out pairs show no image"


def test_the_data_set_decides_which_pairs_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two runs that differ in their seed alone would be measured on different pairs."""
    from jobs.gpu import watching
    from starting import config_of

    monkeypatch.setattr(watching, "no_kl", lambda trainer: "")
    rows = [{"messages": tiny.ask("what?", "x.png")} for _ in range(200)]

    def drawn(seed: int, data: str) -> tuple[list[int], list[int]]:
        material: Any = SimpleNamespace(rows=rows, pairs=list(range(200)), report=[], seed=data)
        unused: Any = None
        watcher = watching.Watcher(config_of(seed=seed), unused, material, unused, {}, unused, lambda: None)
        return watcher._blank, watcher._near

    assert drawn(1, "aa") == drawn(2, "aa")
    assert drawn(1, "aa") != drawn(1, "bb")
    assert [len(places) for places in drawn(1, "aa")] == [64, 32]


def test_the_divergence_is_exact_over_the_vocabulary(trained: RunFolder) -> None:
    models = plain(trained)
    total, tokens = 0.0, 0
    for row in trained.rows():
        if row["split"] != "heldout":
            continue
        ours, _ = models.logits(models.policy, trained, row, "chosen")
        theirs, _ = models.logits(models.base, trained, row, "chosen")
        total += float((ours.exp() * (ours - theirs)).sum())
        tokens += len(ours)
    assert total > 0
    assert metrics(trained, "heldout_kl")[-1][1]["heldout_kl"] == pytest.approx(total / tokens, rel=1e-3)


def test_the_divergence_of_tiles_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head, ours, theirs = nn.Linear(8, 50), torch.randn(7, 8), torch.randn(7, 8)
    words = [head(hidden).log_softmax(dim=1) for hidden in (ours, theirs)]
    wanted = torch.nn.functional.kl_div(words[1], words[0], log_target=True, reduction="none").sum(dim=1)
    for tile in (1, 100, 1 << 20):
        monkeypatch.setattr("jobs.gpu.watching.TILE", tile)
        assert torch.allclose(divergence(ours, theirs, head), wanted, atol=1e-5)
    assert divergence(ours, ours, head).abs().max() == 0

    class Text:
        final_logit_softcapping = 3.0
        logit_scale = 2.0

    capped = [(torch.tanh(head(hidden) * 2 / 3) * 3).log_softmax(dim=1) for hidden in (ours, theirs)]
    wanted = (capped[0].exp() * (capped[0] - capped[1])).sum(dim=1)
    assert torch.allclose(divergence(ours, theirs, head, Text()), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["steerlm", "rejection", "sft"])
def test_every_method_has_rewards_on_pairs(tmp_path: Path, kind: str) -> None:
    """β is 0.1 where a method has none; the loss is that of its own rows."""
    run = sft_run(tmp_path / "run", kind)
    assert work(run.path) == 0, last_end(run)
    found = metrics(run, "heldout_reward_margin")
    assert [step for step, _ in found] == [4, 8]
    assert all(set(values) == {f"heldout_{name}" for name in {*HELD_OUT, "shown_margin"}} for _, values in found)
    for split in ("heldout", "report"):
        told = metrics(run, f"{split}_reward_margin")[-1][1]
        for name, value in by_hand(run, split, 0.1).items():
            if name != "loss":
                assert told[f"{split}_{name}"] == pytest.approx(value, abs=1e-3)
    assert "report_loss" not in metrics(run, "report_reward_margin")[-1][1]
    steps = [event["values"] for event in tiny.events(run, "metric") if "loss" in event["values"]]
    assert all("rows_per_second" in values and "pairs_per_second" not in values for values in steps)


def test_pairs_alone_can_be_held_out(tmp_path: Path) -> None:
    """No held-out rows of the trained kind: no held-out loss, and all the rest."""
    rows = [answer("sft", number, []) for number in range(8)]
    run = sft_run(tmp_path / "run", "sft", rows=rows + [sft_pair("sft", number, []) for number in range(20, 23)])
    assert work(run.path) == 0, last_end(run)
    found = metrics(run, "heldout_reward_margin")
    assert [step for step, _ in found] == [4, 8]
    # Without images there is nothing to blank.
    assert set(found[0][1]) == {
        f"heldout_{name}" for name in HELD_OUT - {"loss", "token_accuracy", "blank_margin"}
    }


def test_reward_metrics_of_a_small_table() -> None:
    found = reward_metrics([7, 3], ([-1.0, -4.0], [-2.0, -3.0]), {7: (-2.0, -2.0), 3: (-4.0, -4.0)}, 0.5)
    assert found == pytest.approx(
        {
            "reward_chosen": 0.25,
            "reward_rejected": 0.25,
            "reward_margin": 0.0,
            "reward_accuracy": 0.5,
            "logp_chosen": -2.5,
            "logp_rejected": -2.5,
        }
    )


def test_at_most_so_many_are_looked_at_the_same_ones_each_time() -> None:
    places = list(range(100, 300))
    drawn = some(places, 64, seed="1")
    assert len(drawn) == 64
    assert drawn == sorted(drawn)
    assert drawn == some(places, 64, seed="1")
    assert drawn != some(places, 64, seed="2")
    assert some(places[:5], 64, seed="1") == places[:5]


@pytest.mark.parametrize("name", list(tiny_models.FAMILIES))
def test_a_blanked_batch_of_every_family_runs_and_gives_other_scores(name: str) -> None:
    """SmolVLM drops images of zeros, and would then miss some: what is padding stays so, what isn't doesn't."""
    from jobs.gpu.shared_prefix import SharedPrefix

    model = tiny_models.make(name)
    prefix = SharedPrefix(model.get_base_model(), images_once=True)
    batch, images = tiny_models.stacked(name, [1, 2, 0], [(3, 5), (4, 2), (2, 2)])
    labels = batch.pop("labels")
    with torch.no_grad():
        real = prefix.score(labels, {**batch, **images}).log_probs.sum(dim=1)
        blank = prefix.score(labels, {**batch, **blanked(images)}).log_probs.sum(dim=1)
        other = {key: value * 2 if key == "pixel_values" else value for key, value in images.items()}
        again = prefix.score(labels, {**batch, **blanked(other)}).log_probs.sum(dim=1)
    assert bool(torch.isfinite(blank).all())
    assert torch.equal(blank, again)  # nothing of the pictures is left
    assert (real - blank).abs()[[0, 1, 3, 4]].min() > 1e-4
    assert (real - blank).abs()[[2, 5]].max() < 1e-4  # the row without an image


def watched_family(folder: Path, name: str) -> RunFolder:
    """A run whose held-out pairs have no image, one and two."""
    from test_families import FAST as FAMILY_FAST
    from test_families import pictures

    images = pictures(folder.parent / "images")
    names = [image for image, _ in images]
    rows = [pair(number, names[: number % 3]) for number in range(4)]
    rows += [pair(number, names[: number % 3], "heldout") for number in range(20, 24)]
    changes = {"max_steps": 3, "evaluations": 1, "watched_samples": 4, "watched_tokens": 4, "learning_rate": 2e-2}
    config = {**FAMILY_FAST, **changes, "model": str(tiny_vlms.folder(name))}
    run = tiny.frozen_run(folder, "dpo", config, rows, images)
    assert work(run.path) == 0, last_end(run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", list(tiny_vlms.FAMILIES))
def test_every_familys_numbers_are_those_made_by_hand(tmp_path: Path, name: str) -> None:
    """With the family's own processor, one sequence at a time, on transformers' own forward."""
    from jobs.gpu.loading import load
    from jobs.reporter import Reporter

    run = watched_family(tmp_path / "run", name)
    ((_, told),) = metrics(run, "heldout_kl")
    with Reporter(run) as reporter:
        base, other = (
            load(str(tiny_vlms.folder(name)), "float32", torch.device("cpu"), tmp_path, reporter) for _ in range(2)
        )
    policy = PeftModel.from_pretrained(other.model, run.adapter).eval()
    processor, divergences, margins = base.processor, [], []
    for row in (row for row in run.rows() if row["split"] == "heldout"):
        messages = from_run(run, row["messages"])
        frame = answer_frame(processor, messages, end_tokens(base.model, processor.tokenizer))
        ratios = []
        for side in ("chosen", "rejected"):
            encoded = encode(processor, [messages])
            ids = torch.tensor([answer_ids(processor, row[side], frame)])
            kinds = {key: value for key, value in encoded.items() if key.endswith("token_type_ids")}
            whole = {key: torch.cat([value, torch.zeros_like(ids)], dim=1) for key, value in kinds.items()}
            whole["input_ids"] = torch.cat([encoded.pop("input_ids"), ids], dim=1)
            encoded.pop("attention_mask")
            size = ids.shape[1]
            with torch.no_grad():
                ours, theirs = (
                    model(**{**encoded, **whole}).logits[0, -size - 1 : -1].log_softmax(dim=-1)
                    for model in (policy, base.model)
                )
            ratios.append(float((ours - theirs).gather(1, ids.T).sum()))
            if side == "chosen":
                divergences += (ours.exp() * (ours - theirs)).sum(dim=1).tolist()
        margins.append(0.1 * (ratios[0] - ratios[1]))
    assert told["heldout_kl"] == pytest.approx(sum(divergences) / len(divergences), rel=2e-3, abs=1e-6)
    assert told["heldout_kl"] > 1e-5
    assert told["heldout_reward_margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-3)
    assert abs(told["heldout_blank_margin"] - told["heldout_reward_margin"]) > 1e-5
    answers = tiny.events(run, "answers")[-1]["answers"]
    assert len(answers) == 4
    for item in (item for item in answers if item["image"]):
        with Image.open(run.path / item["image"]) as picture:
            assert min(picture.size) > 0


# Looking changes nothing


def test_a_watched_run_ends_with_the_weights_of_an_unwatched_one(tmp_path: Path) -> None:
    """With dropout, so that every number that is drawn at random counts."""
    nothing = {"watched_samples": 0, "watched_prompts": "", "report_to": "", "keep_checkpoints": 0}
    blind = uneven_run(tmp_path / "blind", evaluations=0, **nothing)
    watched = uneven_run(tmp_path / "watched", evaluations=6, watched_tokens=6)
    assert work(blind.path) == work(watched.path) == 0
    assert apart(blind, watched) == 0
    assert [values for _, values in metrics(blind, "loss")] == [values for _, values in metrics(watched, "loss")]


@pytest.mark.slow
def test_a_watched_run_with_checkpointing_ends_the_same(tmp_path: Path) -> None:
    runs = [
        uneven_run(tmp_path / name, gradient_checkpointing=True, evaluations=count, max_steps=3)
        for name, count in (("blind", 0), ("watched", 3))
    ]
    assert [work(run.path) for run in runs] == [0, 0]
    assert apart(*runs) == 0


def test_undisturbed_puts_modes_and_noise_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    model[1].eval()
    before = noise()

    def look() -> None:
        with undisturbed(model):
            model.eval()
            torch.rand(3)
            random.random()
            raise KeyError

    with pytest.raises(KeyError):
        look()
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.equal(before[2], torch.get_rng_state())
    assert before[0] == random.getstate()


# Metrics of a step


def test_throughput_counts_real_rows_and_their_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of the test's own: each look at it is a second later, so every step takes one."""
    import itertools
    import types

    ticks = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr("jobs.gpu.callbacks.time", clock)
    rows = [pair(number, []) for number in range(5)]
    changes = {"batch_size": 2, "global_batch": 4, "max_steps": 2, "evaluations": 0}
    run = dpo_run(tmp_path / "run", {**FAST, **changes}, rows)
    assert work(run.path) == 0, last_end(run)
    told = [event["values"] for event in tiny.events(run, "metric") if "loss" in event["values"]]
    assert [values["pairs_per_second"] for values in told] == [4.0, 1.0]
    asked = "<|im_start|>user\nwhat is 0?<|im_end|>\n<|im_start|>assistant\n"
    prompt = len(tiny.make_tokenizer()(asked, add_special_tokens=False)["input_ids"])
    answers = [len(f"It is a {'red' if row % 2 else 'blue'} thing.") + 1 + len("no") + 1 for row in range(5)]
    assert sum(values["tokens_per_second"] for values in told) == sum(answers) + 5 * prompt
    assert sum(values["answer_tokens"] * values["pairs_per_second"] * 2 for values in told) == sum(answers)


def test_what_a_clock_decides_is_known_to_the_tests(trained: RunFolder) -> None:
    names = {name for event in tiny.events(trained, "metric") for name in event["values"]}
    assert names >= TIMED - {"rows_per_second"}


# Watched answers


def test_the_answers_come_at_the_start_and_at_each_evaluation(trained: RunFolder) -> None:
    told = tiny.events(trained, "answers")
    assert [event["step"] for event in told] == [0, 4, 8]
    for event in told:
        answers = event["answers"]
        assert [answer["number"] for answer in answers] == list(range(6))  # four samples, two prompts
        assert {answer["sample_id"] for answer in answers[:4]} < set(range(20, 26))
        assert [answer["prompt"] for answer in answers[4:]] == [
            "Write two sentences about the sea.",
            "List three kinds of fruit.",
        ]
        assert all(answer["tokens"] <= 48 for answer in answers)
        assert [answer["image"] is None for answer in answers[4:]] == [True, True]
    asked = [[(answer["prompt"], answer["sample_id"]) for answer in event["answers"]] for event in told]
    assert asked[0] == asked[1] == asked[2]
    texts = [[answer["text"] for answer in event["answers"]] for event in told]
    assert texts[0] != texts[2]


def test_the_last_answers_are_the_adapters_own(trained: RunFolder) -> None:
    """By transformers' generate, with the adapter loaded anew; the first ones are the base's."""
    models = plain(trained)
    rows = {row["sample_id"]: row for row in trained.rows()}
    first, *_, last = tiny.events(trained, "answers")
    for model, event in ((models.base, first), (models.policy, last)):
        for told in event["answers"]:
            sample = told["sample_id"]
            asked = rows[sample]["messages"] if sample is not None else tiny.ask(told["prompt"])
            inputs = encode(models.processor, [from_run(trained, asked)])
            output = model.generate(**inputs, max_new_tokens=48, do_sample=False)
            new = output[0, inputs["input_ids"].shape[1] :]
            text = models.processor.tokenizer.decode(new, skip_special_tokens=True)
            assert told["text"] == text.strip()


def test_pictures_are_saved_as_the_model_sees_them(trained: RunFolder) -> None:
    rows = {row["sample_id"]: row for row in trained.rows()}
    shown = 0
    for told in tiny.events(trained, "answers")[0]["answers"][:4]:
        count = sum(part["type"] == "image" for part in rows[told["sample_id"]]["messages"][-1]["content"])
        assert (told["image"] is not None) == (count > 0)
        if count:
            shown += 1
            with Image.open(trained.path / told["image"]) as picture:
                assert picture.size == (tiny.IMAGE_SIDE * count + 4 * (count - 1), tiny.IMAGE_SIDE)
    assert shown
    assert not list((trained.path / "seen").glob("*.part"))


def test_pictures_side_by_side() -> None:
    one, two = Image.new("RGB", (4, 6), "red"), Image.new("RGB", (3, 2), "blue")
    both = side_by_side([one, two])
    assert both.size == (11, 6)
    assert [both.getpixel(spot) for spot in ((0, 5), (5, 0), (9, 1), (9, 4))] == [
        (255, 0, 0), (255, 255, 255), (0, 0, 255), (255, 255, 255),
    ]  # fmt: skip
    assert side_by_side([one]) is one


def test_watched_samples_are_the_first_of_an_order_by_the_data_set() -> None:
    @dataclass
    class Rows:
        rows: list[dict[str, Any]]
        pairs: list[int]
        held_out: list[int]
        seed: str = "5"

    rows = [{"sample_id": number // 2, "number": number} for number in range(20)]
    material: Any = Rows(rows, list(range(4, 20))[::-1], [])
    few, many = watched_rows(material, "dpo", 3), watched_rows(material, "dpo", 6)
    assert len({row["sample_id"] for row in many}) == 6
    assert [row["number"] % 2 for row in many] == [0] * 6  # a sample's first row
    assert few == many[:3]
    another: Any = Rows(rows, material.pairs, [], "6")
    assert [row["sample_id"] for row in few] != [row["sample_id"] for row in watched_rows(another, "dpo", 3)]
    assert len(watched_rows(material, "dpo", 50)) == 8
    alone: Any = Rows(rows, [], [3])
    assert watched_rows(alone, "sft", 2) == [rows[3]]
    assert watched_rows(alone, "steerlm", 2) == []


def test_steerlm_is_watched_as_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text prompts ask for all values at 4, as pairs do; the page shows the question alone."""
    from jobs.gpu.answers import Answers, asked
    from jobs.steerlm import attribute_string, with_attributes

    kept: list[Any] = []
    real = Answers.ask

    def ask(self: Answers, step: int) -> None:
        kept.extend(self._items)
        real(self, step)

    monkeypatch.setattr(Answers, "ask", ask)
    changes = {"max_steps": 1, "evaluations": 0, "watched_prompts": "Hi?", "watched_samples": 0}
    run = sft_run(tmp_path / "run", "steerlm", changes)
    assert work(run.path) == 0, last_end(run)
    (item,) = kept
    assert item.messages == with_attributes(tiny.ask("Hi?"))
    assert item.messages[-1]["content"][-1]["text"].endswith("\n" + attribute_string())
    ((told,),) = [event["answers"] for event in tiny.events(run, "answers")]
    assert told["prompt"] == "Hi?"
    assert asked(with_attributes(tiny.ask("what?", "x.png"))) == "what?"
    assert asked(with_attributes([{"role": "user", "content": "what?"}])) == "what?"


def test_a_prompt_that_fills_the_context_is_left_out(tmp_path: Path) -> None:
    changes = {"max_steps": 1, "evaluations": 0, "watched_prompts": f"{'a' * 250} | short", "watched_samples": 0}
    run = dpo_run(tmp_path / "run", {**FAST, **changes}, [pair(number, []) for number in range(4)])
    assert work(run.path) == 0, last_end(run)
    ((only,),) = [event["answers"] for event in tiny.events(run, "answers")]
    assert (only["number"], only["prompt"]) == (1, "short")
    assert any("is left out: its" in event["text"] for event in tiny.events(run, "note"))


def test_from_an_adapter_the_first_answers_are_its_own(trained: RunFolder, tmp_path: Path) -> None:
    """And the reference is that adapter: a policy that stays where it is has no distance, and no rewards."""
    images = [(file.name, file) for file in sorted((trained.path.parent / "images").iterdir())]
    config = {**FAST, "start_adapter": 3, "learning_rate": 1e-12, "max_steps": 1, "evaluations": 1}
    run = tiny.frozen_run(tmp_path / "run", "dpo", config, list(trained.rows()), images, {3: trained.adapter})
    assert work(run.path) == 0, last_end(run)
    texts = [
        [item["text"] for item in tiny.events(one, "answers")[at]["answers"]]
        for one, at in ((trained, -1), (run, 0))
    ]
    assert texts[0] == texts[1]
    ((_, told),) = metrics(run, "heldout_kl")
    assert told["heldout_kl"] == pytest.approx(0, abs=1e-6)
    assert told["heldout_reward_margin"] == pytest.approx(0, abs=1e-4)
    assert told["heldout_blank_margin"] == pytest.approx(0, abs=1e-4)
    assert told["heldout_logp_chosen"] == pytest.approx(
        metrics(trained, "heldout_loss")[-1][1]["heldout_logp_chosen"], abs=1e-3
    )
