"""Every loss that TRL has: written as a weighted sum, and the same by the shared prefix as the stock way."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from jobs.configs import DpoConfig
from jobs.gpu.dpo import Preferences
from jobs.losses import LOSSES, parse_losses
from jobs.worker import work
from test_dpo_job import FAST, dpo_run, last_end, pair

pytestmark = pytest.mark.slow  # as a whole: see the marker in pyproject.toml

# How a sum is written

WEIGHTS = st.one_of(st.integers(0, 99), st.decimals("0", "10", places=3)).map(str)
SUMS = st.lists(st.sampled_from(LOSSES), min_size=1, max_size=6, unique=True).flatmap(
    lambda names: st.tuples(st.just(names), st.lists(WEIGHTS, min_size=len(names), max_size=len(names)))
)


@given(SUMS, st.sampled_from([" ", "", "  ", " * ", "*", " × "]), st.sampled_from([" + ", "+", "  +"]))
def test_a_sum_is_read_as_it_was_written(terms: tuple[list[str], list[str]], times: str, plus: str) -> None:
    names, weights = terms
    text = plus.join(f"{weight}{times}{name}" for name, weight in zip(names, weights, strict=True))
    wanted = [(name, float(weight)) for name, weight in zip(names, weights, strict=True)]
    if any(map(float, weights)):
        assert parse_losses(text) == wanted
        assert parse_losses(" + ".join(f"{weight:.3f} {name}" for name, weight in wanted)) == wanted
    else:
        with pytest.raises(ValueError, match="all weights are 0"):
            parse_losses(text)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_alone_weighs_one(name: str) -> None:
    assert parse_losses(name) == [(name, 1.0)]
    assert parse_losses(f" {name} ") == [(name, 1.0)]


def test_all_of_trls_losses_are_offered() -> None:
    """TRL names them in the message that refuses another."""
    from trl.trainer import dpo_trainer

    told = Path(str(dpo_trainer.__file__)).read_text(encoding="utf-8").split("Should be one of [")[1].split("]")[0]
    assert tuple(re.findall(r"\w+", told)) == LOSSES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is not a loss"),
        ("sigmoid +", "'' is not a loss"),
        ("dpo", "'dpo' is not a loss"),
        ("0.8 sigmoid, 0.2 bco_pair", "is not a loss"),
        ("-1 sigmoid", "'-1 sigmoid' is not a loss"),
        ("nan sigmoid", "is not a loss"),
        ("1e3 sigmoid", "is not a loss"),
        ("sigmoid + 2 sigmoid", "sigmoid stands there twice"),
        ("0 sigmoid", "all weights are 0"),
        ("0 sigmoid + 0.0 sft", "all weights are 0"),
    ],
)
def test_what_is_no_sum_of_losses(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_losses(text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "dpo"}, "'dpo' is not a loss with or without a weight; use sigmoid, hinge"),
        ({"loss": "0 sigmoid"}, "give one loss a weight above 0"),
        ({"label_smoothing": 0.1}, "label_smoothing 0.1 does nothing for 'sigmoid'"),
        ({"label_smoothing": 0.1, "loss": "hinge + sft"}, "does nothing for 'hinge + sft'"),
        ({"loss": "0.5 sigmoid + exo_pair"}, "exo_pair needs label_smoothing above 0"),
        ({"loss": "robust", "label_smoothing": 0.5}, "less than 0.5"),
        ({"image_weight": -1.0}, "greater than or equal to 0"),
    ],
)
def test_losses_that_a_form_refuses(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        DpoConfig.model_validate({"dataset": "pairs", **changes})


# What they give


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(folder: Path, changes: dict[str, Any], shared: bool) -> Any:
    """A trainer on rows with no, one and two images, its LoRA away from zero."""
    from jobs.gpu.callbacks import Telling
    from jobs.gpu.loading import load
    from jobs.gpu.material import read_material, with_references
    from jobs.gpu.training import make_trainer
    from jobs.reporter import Reporter

    config = DpoConfig.model_validate(
        {**FAST, "model": str(tiny.tiny_llava()), "max_steps": 2, "batch_size": 8, "accumulation": 1, **changes}
    )
    run = dpo_run(folder / f"run-{shared}", {**FAST, **changes})
    with Reporter(run) as reporter:
        loaded = load(config.model, "float32", torch.device("cpu"), folder, reporter)
        rows = [{**row, "rejected": "no" * (row["pair_id"] % 4 + 1)} for row in run.rows()][:8]
        material = read_material(run, loaded, rows, shared, reporter)
        trainer = make_trainer(run, config, loaded, material, Telling(reporter, config, 0), shared)
    trainer.remove_callback(Telling)  # its reporter has ended
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.05, generator=noise)
    values = {place: (-30.0 - 3 * place, -9.0 + place) for place in range(8)}
    trainer.train_dataset = with_references(trainer.train_dataset, values)
    trainer.precompute_ref_logps = True
    return trainer


def step(trainer: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of all rows in one batch, and the gradients."""
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[n] for n in range(8)]))
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return float(loss.detach()), {
        name: parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }


SMOOTHED = {"exo_pair": 1e-3, "robust": 0.1}
CASES = [
    *[({"loss": name, "label_smoothing": SMOOTHED.get(name, 0.0)}, name) for name in LOSSES],
    ({"loss": "0.8 sigmoid + 0.2 bco_pair + 1.0 sft"}, "MPO"),
    ({"loss": "exo_pair", "label_smoothing": 0.2}, "exo_pair smoothed"),
    ({"loss": "robust", "label_smoothing": 0.3}, "robust smoothed"),
    ({"loss": "aot", "label_smoothing": 0.2}, "aot smoothed"),
    ({"loss": "aot_unpaired", "label_smoothing": 0.2}, "aot_unpaired smoothed"),
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Our trainer, and one the stock way: two sequences a pair, every token scored by TRL."""
    folder = tmp_path_factory.mktemp("losses")
    return make(folder, {}, True), make(folder, {}, False)


@pytest.mark.parametrize(("changes", "name"), CASES, ids=[name for _, name in CASES])
def test_the_shared_prefix_gives_the_loss_and_the_gradients_of_the_stock_path(
    both: tuple[Any, Any], changes: dict[str, Any], name: str
) -> None:
    losses = parse_losses(changes["loss"])
    found = []
    for trainer in both:
        trainer.loss_types, trainer.loss_weights = (list(each) for each in zip(*losses, strict=True))
        trainer.label_smoothing = changes.get("label_smoothing", 0.0)
        found.append(step(trainer))
    (ours, gradients), (stock, stock_gradients) = found
    assert math.isfinite(stock)
    assert ours == pytest.approx(stock, rel=1e-4, abs=1e-4)
    assert gradients.keys() == stock_gradients.keys()
    assert len(gradients) == 2 * 7 * 2
    assert sum(float(value.norm()) for value in stock_gradients.values()) > 0
    for parameter, wanted in stock_gradients.items():
        assert float((gradients[parameter] - wanted).norm()) <= 1e-4 * float(wanted.norm()), parameter


def test_a_sum_is_the_sum(both: tuple[Any, Any]) -> None:
    ours, _ = both
    parts = []
    for types, weights in ((["sigmoid"], [1.0]), (["bco_pair"], [1.0]), (["sft"], [1.0])):
        ours.loss_types, ours.loss_weights, ours.label_smoothing = types, weights, 0.0
        parts.append(step(ours)[0])
    ours.loss_types, ours.loss_weights = ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]
    assert step(ours)[0] == pytest.approx(0.8 * parts[0] + 0.2 * parts[1] + parts[2], rel=1e-5)


@pytest.mark.parametrize(("changes", "name"), CASES, ids=[name for _, name in CASES])
def test_the_form_reaches_trl(tmp_path: Path, changes: dict[str, Any], name: str) -> None:
    """What the form says is what TRL computes; two steps, of which the first warms up at 0, move every weight."""
    trainer = make(tmp_path, changes, True)
    assert list(zip(trainer.loss_types, trainer.loss_weights, strict=True)) == parse_losses(changes["loss"])
    assert trainer.label_smoothing == changes.get("label_smoothing", 0.0)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if n in before and not torch.equal(before[n], p)}
    assert moved == before.keys()


def test_mpo_through_the_worker(tmp_path: Path) -> None:
    """At step 0: ln 2 from the sigmoid, 2 ln 2 from BCO, and the chosen answers' loss for each token."""
    rows = [pair(n, []) for n in range(4)]
    run = dpo_run(tmp_path / "run", {**FAST, "max_steps": 2, "loss": "0.8 sigmoid + 0.2 bco_pair + 1.0 sft"}, rows)
    assert work(run.path) == 0, last_end(run)
    first = next(event["values"] for event in tiny.events(run, "metric") if "loss" in event["values"])
    assert first["reward_margin"] == pytest.approx(0.0, abs=1e-4)
    sizes = [len(row["chosen"].encode()) + 1 for row in rows]  # bytes, and the end of turn
    sft = -first["logp_chosen"] * len(rows) / sum(sizes)
    assert first["loss"] == pytest.approx(0.8 * math.log(2) + 0.2 * 2 * math.log(2) + sft, abs=1e-3)


def test_an_unknown_loss_ends_a_job_before_a_device_is_claimed(tmp_path: Path) -> None:
    run = dpo_run(tmp_path / "run", {**FAST, "loss": "kto"})
    assert work(run.path) == 1
    assert "'kto' is not a loss" in last_end(run)["reason"]
    assert not tiny.events(run, "phase")


def test_trls_trainer_is_left_as_it_is() -> None:
    """The losses are TRL's own: we add terms, and replace none."""
    from trl import DPOTrainer

    assert Preferences._compute_loss is DPOTrainer._compute_loss
