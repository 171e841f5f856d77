"""mDPO's image term and anchor: against plain forwards of transformers, by both paths, and once in the book."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tiny
from jobs.config_training import TRAINING_PRESETS
from jobs.configs import DpoConfig
from jobs.gpu.image_term import anchor_loss, image_loss, image_margins, make_scraps, scrap_of
from jobs.runs import RunFolder
from jobs.worker import work
from test_dpo_job import FAST, dpo_run, last_end, pair

MDPO = {**FAST, "image_weight": 1.0, "anchor_weight": 1.0, "watched_samples": 0, "watched_prompts": ""}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Scraps


def coordinates(width: int, height: int) -> Image.Image:
    """A picture whose pixels say where they are."""
    picture = Image.new("RGB", (width, height))
    picture.putdata([(x, y, 0) for y in range(height) for x in range(width)])
    return picture


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**64 - 1))
def test_a_scrap_is_a_fifth_at_most_and_as_large_as_the_image(width: int, height: int, seed: int) -> None:
    whole = coordinates(width, height)
    scrap = scrap_of(whole, seed)
    assert scrap.size == whole.size
    assert scrap.tobytes() == scrap_of(whole, seed).tobytes()
    seen = numpy.asarray(scrap).reshape(-1, 3)
    spans = (seen.max(axis=0).astype(int) - seen.min(axis=0) + 1).tolist()
    if width >= 10 and height >= 10:
        # Enlarging overshoots by a pixel at the most.
        assert (spans[0] - 2) * (spans[1] - 2) <= 0.2 * width * height


def test_scraps_differ_by_seed_and_reach_the_whole_image() -> None:
    whole = coordinates(100, 100)
    centres, shares = [], []
    for seed in range(300):
        scrap = scrap_of(whole, seed)
        low, high = (numpy.asarray(scrap)[corner, corner].astype(int).tolist() for corner in (0, 99))
        centres.append((low[0] + high[0]) / 2)
        shares.append((high[0] - low[0] + 1) * (high[1] - low[1] + 1) / 10_000)
    assert min(centres) < 15
    assert max(centres) > 85
    assert min(shares) < 0.02
    assert 0.18 < max(shares) <= 0.21
    assert 0.09 < sum(shares) / len(shares) < 0.12


def test_an_image_has_one_scrap_in_all_runs(tmp_path: Path) -> None:
    """It hangs on the image's bytes, not on its name or the order."""
    names = [tiny.store(tmp_path / "images", tiny.picture(colour, 64))[0] for colour in ("red", "blue")]
    for name in names:
        coordinates(64, 64).rotate(90 * names.index(name)).save(tmp_path / "images" / name)

    class Images(RunFolder):
        @property
        def images(self) -> Path:
            return self.path / "images"

    run, found = Images(tmp_path), []
    for folder, order in (("a", names), ("b", names[::-1])):
        (tmp_path / folder).mkdir()
        scraps = make_scraps(run, tmp_path / folder, order)
        found.append([scraps.image(name).read_bytes() for name in names])
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]
    (tmp_path / "images" / names[1]).write_bytes((tmp_path / "images" / names[0]).read_bytes())
    (tmp_path / "c").mkdir()
    again = make_scraps(run, tmp_path / "c", names)
    assert [again.image(name).read_bytes() for name in names] == [found[0][0]] * 2


# The terms


def test_the_formula() -> None:
    """Equation by hand: two pairs of three show an image."""
    chosen, scrap = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])
    margins = image_margins(chosen, scrap, 0.5)
    assert margins.tolist() == pytest.approx([0.75, -1.0])
    wanted = (-math.log(1 / (1 + math.exp(-0.75))) - math.log(1 / (1 + math.exp(1.0)))) / 3
    assert float(image_loss(margins, 3)) == pytest.approx(wanted, rel=1e-6)
    assert float(image_loss(torch.zeros(0), 3)) == 0.0
    anchor = (-math.log(1 / (1 + math.exp(-1.0))) - math.log(1 / (1 + math.exp(0.5)))) / 2
    assert float(anchor_loss(chosen, 0.5)) == pytest.approx(anchor, rel=1e-6)


def test_spreading_pairs_over_batches_changes_nothing() -> None:
    margins = torch.tensor([0.5, -1.0, 2.0])
    whole = image_loss(margins, 4)
    halves = (image_loss(margins[:1], 2) + image_loss(margins[1:], 2)) / 2
    assert float(whole) == pytest.approx(float(halves), rel=1e-6)


class Plain:
    """The terms from transformers' own forward, one sequence at a time, and from rows that nobody prepared."""

    def __init__(self, trainer: Any, run: RunFolder, rows: list[dict[str, Any]], folder: Path) -> None:
        from jobs.gpu.answering import end_tokens

        self.model, self.processor = trainer.model, trainer.processing_class
        self.beta, self.run, self.rows, self.folder = trainer.beta, run, rows, folder
        self.ends = end_tokens(trainer.model.get_base_model(), self.processor.tokenizer)

    def logp(self, row: dict[str, Any], run: RunFolder, side: str = "chosen") -> torch.Tensor:
        from jobs.gpu.frames import answer_frame, answer_ids
        from jobs.gpu.prompts import encode, from_run

        messages = from_run(run, row["messages"])
        encoded = encode(self.processor, [messages])
        answer = answer_ids(self.processor, row[side], answer_frame(self.processor, messages, self.ends))
        ids = torch.cat([encoded["input_ids"], torch.tensor([answer])], dim=1)
        images = {name: encoded[name] for name in ("pixel_values",) if name in encoded}
        words = self.model(input_ids=ids, **images).logits[0].log_softmax(dim=-1)
        start = ids.shape[1] - len(answer)
        return torch.stack([words[start + place - 1, token] for place, token in enumerate(answer)]).sum()

    def ratio(self, row: dict[str, Any], run: RunFolder, side: str = "chosen") -> torch.Tensor:
        with torch.no_grad(), self.model.disable_adapter():
            reference = self.logp(row, run, side)
        return self.logp(row, run, side) - reference

    def loss(self, image_weight: float, anchor_weight: float) -> torch.Tensor:
        from torch.nn.functional import logsigmoid

        total = torch.zeros(())
        for row in self.rows:
            chosen = self.ratio(row, self.run)
            total = total - logsigmoid(self.beta * (chosen - self.ratio(row, self.run, "rejected")))
            total = total - anchor_weight * logsigmoid(self.beta * chosen)
            names = [part["image"] for part in row["messages"][0]["content"] if part["type"] == "image"]
            if names:
                scraps = make_scraps(self.run, self.folder, names)
                total = total - image_weight * logsigmoid(self.beta * (chosen - self.ratio(row, scraps)))
        return total / len(self.rows)


def made(folder: Path, changes: dict[str, Any], shared: bool) -> tuple[Any, RunFolder, list[dict[str, Any]]]:
    """A trainer with references and scraps, its LoRA away from zero; rows with no, one and two images."""
    from jobs.gpu.callbacks import Telling
    from jobs.gpu.loading import load
    from jobs.gpu.material import open_book, read_material
    from jobs.gpu.scoring import PairScorer
    from jobs.gpu.training import make_trainer, references
    from jobs.reporter import Reporter

    config = DpoConfig.model_validate({**MDPO, "model": str(tiny.tiny_llava()), **changes})
    run = dpo_run(folder / "run", {**MDPO, **changes})
    rows = list(run.rows())[:6]
    with Reporter(run) as reporter:
        loaded = load(config.model, "float32", torch.device("cpu"), folder, reporter)
        material = read_material(run, loaded, rows, shared, reporter)
        trainer = make_trainer(run, config, loaded, material, Telling(reporter, config, 0), shared)
        book = open_book(run, run.job(), loaded, shared)
        scorer = PairScorer(trainer, material, trainer.collate_pairs)
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, 0.05, generator=noise)
        references(run, config, trainer, material, book, scorer, reporter)
    trainer.remove_callback(Telling)  # its reporter has ended
    return trainer, run, rows


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("shared", [True, False])
def test_loss_and_gradients_are_those_of_the_plain_formula(
    tmp_path: Path, shared: bool, weights: tuple[float, float]
) -> None:
    image, anchor = weights
    trainer, run, rows = made(tmp_path, {"image_weight": image, "anchor_weight": anchor}, shared)
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[n] for n in range(len(rows))]))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    torch.autograd.backward(loss)
    ours = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    (tmp_path / "plain").mkdir()
    plain = Plain(trainer, run, rows, tmp_path / "plain").loss(image, anchor)
    torch.autograd.backward(plain)
    assert loss.item() == pytest.approx(plain.item(), abs=1e-4)
    wanted = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert ours.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert float((ours[name] - gradient).norm()) <= 1e-4 * float(gradient.norm()), name


def test_without_weights_the_loss_is_trls_and_nothing_is_prepared(tmp_path: Path) -> None:
    trainer, run, _ = made(tmp_path, {"image_weight": 0.0, "anchor_weight": 0.0}, True)
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(4)])
    assert "scraps" not in batch
    assert not any("scrap" in event["text"] for event in tiny.events(run, "note"))
    from trl import DPOTrainer

    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == DPOTrainer.compute_loss(trainer, trainer.model, batch).item()
    assert not list(run.path.glob("scraps-*"))


def test_a_batch_of_text_alone_has_the_anchor_alone(tmp_path: Path) -> None:
    trainer, _, _ = made(tmp_path, {}, True)
    text = [trainer.train_dataset[n] for n in (0, 3)]  # rows without an image
    batch = trainer.data_collator(text)
    assert "scraps" not in batch
    with_terms = float(trainer.compute_loss(trainer.model, batch))
    assert not trainer._metrics["train"]["image_margin"]
    trainer.image_weight = 0.0
    assert float(trainer.compute_loss(trainer.model, batch)) == with_terms


def test_scraps_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, run, _ = made(tmp_path, {}, True)
    monkeypatch.setattr("PIL.Image.open", lambda *_: pytest.fail("an image was opened"))
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(6)])
    scraps = batch["scraps"]
    assert scraps["shown"].tolist() == [1, 2, 4, 5]
    assert scraps["pixel_values"].shape[0] == 1 + 2 + 1 + 2
    own = batch["pixel_values"]
    assert own.shape == scraps["pixel_values"].shape
    assert not torch.allclose(own, scraps["pixel_values"], atol=0.1)
    assert not list(run.path.glob("scraps-*"))  # their files are gone: tensors are all that is needed


# In jobs


def scrap_note(run: RunFolder) -> str:
    return next(str(e["text"]) for e in tiny.events(run, "note") if e["text"].startswith("Reference under scraps"))


def test_mdpo_through_the_worker(tmp_path: Path) -> None:
    """At step 0 every term is ln 2: two thirds of the rows show an image."""
    rows = [pair(n, []) if n % 3 == 0 else pair(n, ["image"]) for n in range(6)]
    name, file = tiny.store(tmp_path / "images", tiny.picture("red", 64))
    for row in rows:
        for part in row["messages"][0]["content"]:
            if part["type"] == "image":
                part["image"] = name
    held = [{**row, "split": "heldout", "pair_id": row["pair_id"] + 20} for row in rows]
    config = {**MDPO, "batch_size": 6, "global_batch": 6, "max_steps": 6}
    config.pop("accumulation")
    run = tiny.frozen_run(tmp_path / "run", "dpo", config, [*rows, *held], [(name, file)])
    assert work(run.path) == 0, last_end(run)
    steps = [event["values"] for event in tiny.events(run, "metric") if "loss" in event["values"]]
    assert steps[0]["loss"] == pytest.approx((1 + 2 / 3 + 1) * math.log(2), abs=1e-4)
    assert all("image_margin" in values for values in steps)
    assert steps[0]["image_margin"] == pytest.approx(0.0, abs=1e-4)
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["image_margin"] > 0
    held_out = [e["values"] for e in tiny.events(run, "metric") if "heldout_loss" in e["values"]]
    assert all("heldout_image_margin" in values for values in held_out)
    assert "8 of 12 pairs show an image" in " ".join(event["text"] for event in tiny.events(run, "note"))
    # One image, and each question twice: train and held-out pairs share their answers' references.
    assert scrap_note(run).startswith("Reference under scraps: 0 of 4 answers were known from earlier runs, 4")


def test_held_out_margins_weigh_every_pair_with_an_image_alike(tmp_path: Path) -> None:
    trainer, _, _ = made(tmp_path, {}, True)
    trainer.model.eval()
    singles = []
    for group in ([0, 1, 2], [3, 4], [5]):
        batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[n] for n in group]))
        trainer.prediction_step(trainer.model, batch, True)
    for number in (1, 2, 4, 5):
        batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[number]]))
        with torch.no_grad():
            trainer.compute_loss(trainer.model, batch)
        singles.append(trainer._metrics["eval"]["image_margin"].pop())
        trainer._shown.pop()
    kept = {name: list(values) for name, values in trainer._metrics["eval"].items()}
    assert len(kept["image_margin"]) == 3
    for name, values in kept.items():
        trainer._metrics["eval"][name] = values[:3] if len(values) > 3 else values
    logs: dict[str, float] = {}
    trainer.log(logs)
    assert logs["eval_image_margin"] == pytest.approx(sum(singles) / 4, abs=1e-6)


@pytest.mark.slow
def test_a_second_run_computes_no_scrap_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.gpu import image_term

    forwards, real = [0], image_term.score_scraps

    def counted(trainer: Any, model: Any, batch: Any) -> Any:
        if not torch.is_grad_enabled():
            forwards[0] += 1
        return real(trainer, model, batch)

    monkeypatch.setattr(image_term, "score_scraps", counted)
    first = dpo_run(tmp_path / "one", {**MDPO, "max_steps": 2, "evaluations": 0})
    assert work(first.path) == 0, last_end(first)
    rows = [json.loads(line) for line in first.rows_file.read_text(encoding="utf-8").splitlines()]
    shown = [row["messages"] for row in rows if "image" in str(row["messages"])]
    assert len(shown) == 5 + 6
    assert forwards[0] == 3  # eleven answers in batches of 4
    second = dpo_run(tmp_path / "two", {**MDPO, "max_steps": 2, "evaluations": 0, "beta": 0.3})
    assert work(second.path) == 0
    assert forwards[0] == 3
    assert "0 computed in 0 forward passes" in scrap_note(second)


def test_the_book_holds_the_reference_under_the_scrap(tmp_path: Path) -> None:
    """Each number in the book is the base's own under the scrap, by a plain forward."""
    trainer, run, rows = made(tmp_path, {}, True)
    (file,) = (tmp_path / "references").glob("*.jsonl")
    kept = [json.loads(line)["logp"] for line in filter(None, file.read_text().split("\n"))]
    assert len(kept) == 2 * 6 + 4
    (tmp_path / "plain").mkdir()
    plain = Plain(trainer, run, rows, tmp_path / "plain")
    names = sorted(name for name in (one.name for one in run.images.iterdir()))
    scraps = make_scraps(run, tmp_path / "plain", names)
    with torch.no_grad(), trainer.model.disable_adapter():
        wanted = [float(plain.logp(rows[n], scraps)) for n in (1, 2, 4, 5)]
    assert sorted(kept[-4:]) == pytest.approx(sorted(wanted), abs=1e-4)


def test_a_data_set_without_images_says_so(tmp_path: Path) -> None:
    run = dpo_run(tmp_path / "run", {**MDPO, "max_steps": 1, "evaluations": 0}, [pair(n, []) for n in range(4)])
    assert work(run.path) == 0, last_end(run)
    assert "0 of 4 pairs show an image" in " ".join(event["text"] for event in tiny.events(run, "note"))
    first = next(event["values"] for event in tiny.events(run, "metric") if "loss" in event["values"])
    assert first["loss"] == pytest.approx(2 * math.log(2), abs=1e-4)


@pytest.mark.slow
def test_bfloat16_checkpointing_accumulation_and_the_stock_path(tmp_path: Path) -> None:
    changes = {"dtype": "bfloat16", "gradient_checkpointing": True, "batch_size": 2, "accumulation": 2}
    for name, shared in (("one", True), ("two", False)):
        run = dpo_run(tmp_path / name, {**MDPO, **changes, "shared_prefix": shared, "max_steps": 3})
        assert work(run.path) == 0, last_end(run)
        losses = [event["values"]["loss"] for event in tiny.events(run, "metric") if "loss" in event["values"]]
        assert losses[-1] < losses[0]


def test_the_preset_is_the_papers() -> None:
    config = DpoConfig.model_validate({"dataset": "x", **TRAINING_PRESETS["dpo"]["mDPO"]})
    assert (config.image_weight, config.anchor_weight, config.loss, config.beta) == (1.0, 1.0, "sigmoid", 0.1)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    """Rows with and without images, the projector trained too: DDP's wrapper is called once a batch."""
    from safetensors.torch import load_file

    changes = {"batch_size": 2, "global_batch": 4, "train_projector": True, "projector_learning_rate": 1e-2}
    found, margins = [], []
    for processes in (1, 2):
        config = {**MDPO, **changes, "processes": processes, "max_steps": 4, "evaluations": 1}
        del config["accumulation"]
        run = dpo_run(tmp_path / str(processes), config)
        assert work(run.path) == 0, last_end(run)
        found.append(load_file(run.adapter / "adapter_model.safetensors"))
        told = [event["values"] for event in tiny.events(run, "metric")]
        margins.append([values["image_margin"] for values in told if "image_margin" in values])
    assert "0 computed" in scrap_note(run)
    one, two = found
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    assert margins[1][-1] > 0


def test_what_the_reference_said_stays_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With DeepSpeed transformers casts all floats of a batch to bfloat16, pixels and log-probabilities alike."""
    from transformers import Trainer

    trainer, _, _ = made(tmp_path, {}, True)
    real = Trainer._prepare_input

    def casting(self: Any, data: Any) -> Any:
        found = real(self, data)
        return found.bfloat16() if isinstance(found, torch.Tensor) and found.is_floating_point() else found

    monkeypatch.setattr(Trainer, "_prepare_input", casting)
    given = trainer.data_collator([trainer.train_dataset[n] for n in range(6)])
    ready = trainer._prepare_inputs(given)
    assert ready["pixel_values"].dtype == torch.bfloat16
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        assert torch.equal(ready[name], given[name])
    assert torch.equal(ready["scraps"]["references"], given["scraps"]["references"])
    assert given["ref_chosen_logps"].dtype == given["scraps"]["references"].dtype == torch.float32
