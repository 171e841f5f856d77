"""The tab "Train": what each method shows, which data sets it can use, check, trial step, sweep, start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from factories import USER, World, metrics_of
from job_pages import raw_of
from jobs import sweeps
from jobs.configs import KINDS, PRESETS, TRAININGS, TrainConfig, parse_config
from jobs.freezing import freeze
from jobs.preflight import Memory, Preflight
from storage import jobs as store
from storage.adapters import add_adapter
from storage.datasets import list_datasets
from storage.errors import PlumbError, UserError
from storage.pairs import choose_by_hand
from storage.records import Dataset
from storage.scores import add_judgement, ensure_rater
from tiny import tiny_llava
from workbench import job_launch, preflight_views, training_form
from workbench.context import Context
from workbench.forms import collect, shown
from workbench.job_desk import checked, form_values, start, start_sweep, sweep_told, try_step
from workbench.pages import jobs as page
from workbench.training_form import GROUPS, MAIN, SWEPT, TRAINED, lacks
from workbench.training_panel import TrainingPanel, start_words


def dataset(name: str, **counts: int) -> Dataset:
    return Dataset(1, name, "f" * 64, {}, {"train": 0, "heldout": 0, **counts}, USER, "2026-11-22T20:00:00+00:00")


def frozen(world: World, name: str = "first", scored: bool = True, reference: str | None = "circle") -> None:
    rater = ensure_rater(world.db, "judge", "test-judge")
    for number in range(1, 7):
        sample = world.sample(number, reference=reference)
        found = world.candidates(sample, ["a red circle", "red"])
        if scored:
            scores = [
                {"candidate_id": one.id, **metrics_of(quality)}
                for one, quality in zip(found, (11, 4), strict=True)
            ]
            add_judgement(
                world.db, rater_id=rater, sample_id=sample, job_id=None, state="ok", scores=scores, cost=0.0
            )
        choose_by_hand(world.db, USER, found[0].id, found[1].id)
    freeze(world.db, USER, name, ("accepted", "proposed"), heldout_percent=30)


def build() -> TrainingPanel:
    with gr.Blocks():
        return TrainingPanel()


def raw(kind: str, **values: Any) -> list[Any]:
    needed = {"dataset": "first", "model": str(tiny_llava()), "batch_size": 2, "global_batch": 2}
    return raw_of(kind, **{**needed, **values})


def test_the_kinds_are_the_trainings() -> None:
    assert tuple(config.kind for config in TRAININGS) == TRAINED
    assert set(TRAINED) < set(job_launch.LAUNCHED)
    assert {job_launch.tab_of(kind) for kind in TRAINED} == {"train"}
    assert job_launch.tab_of("judge") == "judge"


def test_every_field_has_its_place_in_the_form() -> None:
    placed = [*MAIN, *(path for paths in GROUPS.values() for path in paths)]
    assert len(placed) == len(set(placed))
    assert set(placed) == {control.path for control in training_form.all_controls()}
    for kind in TRAINED:
        assert training_form.paths(kind) | {"only_trial"} == set(KINDS[kind].model_fields)
    assert set(SWEPT) == set(sweeps.FIELDS)


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("preset", ["paper", "demo", "MPO", "mDPO"])
def test_a_preset_through_the_form_is_the_preset(kind: str, preset: str) -> None:
    if preset not in PRESETS[kind]:
        assert kind != "dpo"
        return
    values = job_launch.preset_values(kind, preset) | {"dataset": "first", "model": "demo"}
    controls = job_launch.controls(kind)
    typed = [shown(control, values.get(control.path, control.default)) for control in controls]
    config = parse_config(kind, collect(controls, typed))
    assert config == parse_config(kind, {"dataset": "first", "model": "demo", **PRESETS[kind][preset]})
    assert isinstance(config, TrainConfig)
    assert not config.only_trial


def test_the_papers_presets_are_the_papers(world: World) -> None:
    for kind, rate in (("dpo", 5e-5), ("steerlm", 4e-4), ("rejection", 4e-4), ("sft", 4e-4)):
        paper = job_launch.preset_values(kind, "paper")
        told = [paper[name] for name in ("learning_rate", "epochs", "global_batch", "lora_r", "lora_alpha")]
        assert told == [rate, 3.0, 128, 128, 256]
        assert not {"dataset", "model", "name", "device", "start_adapter", "processes"} & paper.keys()


@pytest.mark.parametrize("kind", TRAINED)
def test_a_method_shows_its_own_fields_under_its_own_names(kind: str) -> None:
    panel = build()
    updates = panel.show_method(kind)
    visible = {
        control.path
        for control, component in zip(panel.form.controls, panel.form.components, strict=True)
        if updates[component]["visible"]
    }
    assert visible == training_form.paths(kind)
    form = panel.forms[kind]
    expected = "Pairs a batch" if kind == "dpo" else "Rows a batch"
    assert updates[form.component("batch_size")]["label"] == expected
    assert updates[panel.form.groups["Preference"]]["visible"] is (kind == "dpo")
    assert all(updates[panel.form.groups[name]]["visible"] for name in GROUPS if name != "Preference")
    shown_presets = [name for name, button in panel.presets.items() if updates[button]["visible"]]
    assert shown_presets == list(PRESETS[kind])
    swept = [path for path, field in panel.sweep.items() if updates[field]["visible"]]
    assert swept == [path for path in SWEPT if path in KINDS[kind].model_fields]
    assert all(updates[field]["value"] == "" for path, field in panel.sweep.items() if path not in swept)


def test_data_sets_are_offered_to_the_methods_that_can_learn_from_them() -> None:
    old = dataset("old", train=8, heldout=2)
    bare = dataset("bare", train=8, heldout=2, scored_answers=0, references=0)
    full = dataset("full", train=8, heldout=2, scored_answers=40, references=10)
    everything = [full, bare, old]
    offered = {kind: [name for _, name in training_form.dataset_choices(everything, kind)] for kind in TRAINED}
    assert offered == {"dpo": ["full", "bare", "old"], "steerlm": ["full"], "rejection": ["full"], "sft": ["full"]}
    assert training_form.dataset_choices([full], "steerlm")[0][0] == "full (40 scored answers)"
    assert training_form.dataset_choices([full], "dpo")[0][0] == "full (8 pairs + 2 held out)"
    assert "freeze its pairs again" in lacks(old, "sft")
    assert lacks(bare, "sft") == "has no reference answers"
    assert lacks(dataset("none", train=0, heldout=3), "dpo") == "has no pairs to train on"
    hint = training_form.hint(everything, "steerlm")
    assert "<b>bare</b> has no scored answers" in hint
    assert "<b>old</b> was frozen before" in hint
    assert training_form.hint([full], "steerlm") == ""
    assert "no frozen data set yet" in training_form.hint([], "dpo")
    many = training_form.hint([dataset(f"<{n}>", train=1) for n in range(9)], "sft")
    assert "and 6 more" in many
    assert "&lt;0&gt;" in many


def test_real_data_sets_are_told_apart(world: World) -> None:
    frozen(world, scored=False, reference=None)
    (found,) = list_datasets(world.db)
    assert [kind for kind in TRAINED if not lacks(found, kind)] == ["dpo"]


def test_a_link_opens_a_method_with_a_data_set_and_an_adapter(world: World, context: Context) -> None:
    kind, values = form_values(context, {"kind": "steerlm", "dataset": "my answers", "start_adapter": "3"})
    assert kind == "steerlm"
    assert (values[kind]["dataset"], values[kind]["start_adapter"]) == ("my answers", 3)
    assert values[kind]["max_steps"] == 30, "the demo's preset"
    _, values = form_values(context, {"kind": "dpo", "model": "owner/large"})
    assert (values["dpo"]["lora_r"], values["dpo"]["max_steps"]) == (128, -1), "the paper's preset"


@pytest.mark.usefixtures("no_supervisor")
@pytest.mark.parametrize("kind", TRAINED)
def test_each_method_starts_from_the_form(world: World, context: Context, kind: str) -> None:
    frozen(world)
    job = start(context, "ada", kind, job_launch.controls(kind), raw(kind))
    assert (job.kind, job.config["dataset"], job.config["only_trial"]) == (kind, "first", False)
    tried = try_step(context, "ada", kind, job_launch.controls(kind), raw(kind))
    assert tried.config == {**job.config, "only_trial": True}
    again = job_launch.rerun_values(tried)
    assert "only_trial" not in again, "its settings again are those of a whole run"


@pytest.mark.usefixtures("no_supervisor")
def test_it_starts_from_an_adapter_of_this_base_alone(world: World, context: Context) -> None:
    frozen(world)
    maker = world.job("dpo")
    add_adapter(world.db, maker, "colours", "ab" * 32, 1, str(tiny_llava()), "dpo")
    choices = job_launch.adapter_choices(world.db, str(tiny_llava()))
    assert choices == [("none: the base itself", ""), ("colours (#1)", 1)]
    files = world.folder.adapters / ("ab" * 32)
    files.mkdir(parents=True)
    (files / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    job = start(context, "ada", "sft", job_launch.controls("sft"), raw("sft", start_adapter=1))
    assert (job.adapter_id, job.config["start_adapter"]) == (1, 1)
    with pytest.raises(UserError, match="was trained on"):
        start(context, "ada", "sft", job_launch.controls("sft"), raw("sft", start_adapter=1, model="demo"))


@pytest.mark.usefixtures("no_supervisor")
@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        ("steerlm", {"dataset": ""}, "dataset = ''"),
        ("dpo", {"batch_size": 3, "global_batch": 128}, "set batch_size to 2, or change global_batch"),
        ("dpo", {"loss": "sigmoit"}, "'sigmoit' is not a loss"),
        ("rejection", {"model": "no model"}, "Unknown base model 'no model'"),
        ("sft", {"device": "cuda:1"}, "device = 'cuda:1' is not there"),
    ],
)
def test_what_cannot_start_says_why(
    world: World, context: Context, kind: str, values: dict[str, Any], text: str
) -> None:
    frozen(world)
    for act in (start, try_step):
        with pytest.raises(PlumbError, match=text):
            act(context, "ada", kind, job_launch.controls(kind), raw(kind, **values))
    assert 'role="alert"' in checked(context, kind, job_launch.controls(kind), raw(kind, **values), {})
    assert [job for job in store.list_jobs(world.db) if job.kind == kind] == []


@pytest.mark.usefixtures("no_supervisor")
def test_check_tells_what_it_needs_and_queues_nothing(world: World, context: Context) -> None:
    frozen(world)
    found = checked(context, "steerlm", job_launch.controls("steerlm"), raw("steerlm"), {})
    for words in ("Rows to train on</dt><dd>8<", "Parameters", "Memory on cpu", "Disk", "try a step"):
        assert words in found, words
    assert "alert" not in found
    swept = checked(context, "dpo", job_launch.controls("dpo"), raw("dpo"), {"beta": "0.1, 0.2", "epochs": "1"})
    assert "the first of 2 jobs" in swept
    assert "give numbers" in checked(context, "dpo", job_launch.controls("dpo"), raw("dpo"), {"beta": "x"})
    assert {job.kind for job in store.list_jobs(world.db)} == {"generate"}


def needed(**values: Any) -> Preflight:
    defaults = {
        "rows": 5084,
        "heldout": 250,
        "report": 250,
        "steps": 120,
        "accumulation": 16,
        "device": "cuda:0",
        "parameters": 13_350_839_296,
        "trainable": 500_695_040,
        "memory": Memory(26_000_000_000, 8_000_000_000, 20_000_000_000, 600_000_000),
        "copies": 1,
        "free_memory": 24_000_000_000,
        "disk": 14_000_000_000,
        "free_disk": 64_000_000_000,
        "seconds": 3600.0,
        "seconds_from": "the pace of job 4",
        "warnings": (),
        "notes": (),
    }
    return Preflight(**{**defaults, **values})


def test_needs_are_told_with_their_warnings_first() -> None:
    found = preflight_views.needs(needed(warnings=("It needs <more>.",), notes=("A note.",)), jobs=12)
    assert found.startswith('<p class="plumb-error" role="alert">It needs &lt;more&gt;.')
    for words in (
        "120, each of 16 batches",
        "13.4 billion",
        "501 million (3.8%)",
        "about 55 GB of 24 GB free",
        "about 1 h, 12 h for all 12",
        "the pace of job 4",
        "A note.",
    ):
        assert words in found, words
    unknown = preflight_views.needs(
        needed(parameters=None, trainable=None, memory=None, disk=None, seconds=None, free_memory=None)
    )
    assert "Memory" not in unknown
    assert "not known yet: try a step" in unknown
    several = preflight_views.needs(needed(copies=2, device="cpu"))
    assert "about 109 GB" in several
    assert "each of 2 processes" in several


def test_a_sweep_is_counted_before_anything_is_queued() -> None:
    assert sweep_told("dpo", {"beta": "0.1, 0.3", "epochs": "2, 3"}) == (
        '<p class="plumb-count">2 × 2 = 4 jobs</p>',
        4,
    )
    assert sweep_told("dpo", {"beta": ""}) == ("", 0)
    told, jobs = sweep_told("dpo", {"seed": ", ".join(str(n) for n in range(65))})
    assert "65 jobs; a sweep has 1 to 64" in told
    assert jobs == 0
    assert start_words(0) == start_words(1) == "Start"
    assert start_words(12) == "Start 12 jobs"


def test_the_papers_sweep_fills_the_fields_that_the_method_has() -> None:
    texts = training_form.sweep_texts("dpo", sweeps.PAPER)
    assert list(texts) == list(SWEPT)
    assert (texts["beta"], texts["learning_rate"], texts["epochs"]) == ("0.1, 0.3, 0.5", "5e-05, 5e-06", "2, 3")
    assert sweeps.read_grid(texts) == sweeps.PAPER
    assert training_form.sweep_texts("sft", sweeps.PAPER)["beta"] == ""


@pytest.mark.usefixtures("no_supervisor")
def test_a_sweep_starts_from_the_form(world: World, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.sweeps.ensure_supervisor", lambda settings: False)
    frozen(world)
    jobs = start_sweep(context, "ada", "sft", job_launch.controls("sft"), raw("sft"), {"seed": (0, 1, 2)})
    assert [job.config["seed"] for job in jobs] == [0, 1, 2]
    assert {job.user for job in jobs} == {"ada"}


def handler(built: gr.Blocks, name: str) -> Any:
    """A function of the built page by its name."""
    found = [fn.fn for fn in built.fns.values() if getattr(fn.fn, "__name__", "") == name]
    assert found, name
    return found[0]


def test_the_page_opens_on_each_method(world: World, context: Context) -> None:
    frozen(world)
    built = page.build(context)
    labels = {block.label: block for block in built.blocks.values() if getattr(block, "label", None)}
    for kind in TRAINED:
        request = SimpleNamespace(query_params={"kind": kind, "dataset": "first"}, username="ada")
        updates = handler(built, "opening")(request)
        method = next(block for block in built.blocks.values() if getattr(block, "elem_id", "") == "train-method")
        assert updates[method]["value"] == kind
        assert updates[labels["Data set"]]["value"] == "first"
        assert updates[labels["Start from"]]["choices"] == [("none: the base itself", "")]
    request = SimpleNamespace(query_params={"kind": "sft", "dataset": "gone"}, username="ada")
    offered = handler(built, "opening")(request)[labels["Data set"]]
    assert offered["value"] == "gone"
    assert offered["choices"][-1] == ("gone (not there any more)", "gone")


def test_another_method_keeps_what_was_typed_but_for_its_learning_rate(world: World, context: Context) -> None:
    frozen(world)
    built = page.build(context)
    labels = {block.label: block for block in built.blocks.values() if getattr(block, "label", None)}
    updates = handler(built, "choosing_method")("sft", "first", "demo")
    assert updates[labels["Data set"]]["value"] == "first"
    rate = next(update for block, update in updates.items() if getattr(block, "label", "") == "Learning rate")
    assert rate["value"] == 4e-4
    assert "value" not in updates[labels["LoRA rank"]]
    assert "value" not in updates[labels["Epochs"]]


def test_the_settings_of_an_old_job_fill_the_form_under_todays_names(world: World, no_supervisor: None) -> None:
    """Version 0.2 said how many batches make a step."""
    old = {"dataset": "shapes", "batch_size": 4, "accumulation": 8}
    job = store.add_job(world.db, kind="dpo", config=old, user=USER, slot_kind="device")
    found = job_launch.rerun_values(job)
    assert (found["batch_size"], found["global_batch"]) == (4, 32)
