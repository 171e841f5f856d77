"""The model card of each method: what it must tell, with and without the files that it reads."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from factories import USER, World
from jobs import queue
from jobs.configs import TRAININGS, TrainConfig
from jobs.freezing import freeze
from jobs.gpu.cards import training_card
from jobs.gpu.markdown import cell, code, table
from jobs.gpu.profiles import Profile
from jobs.runs import RunFolder
from jobs.steerlm import SENTENCE, attribute_string
from test_freezing import by_rule, scored
from test_samples_page import EVIL, Shape
from test_training_rows import adapter, read_lineage
from workbench.model_cards import body_of, card_html

KINDS = [config.kind for config in TRAININGS]
METRICS = {"loss": 0.41234, "heldout_reward_accuracy": 0.75, "report_reward_accuracy": 0.5}


@pytest.fixture
def shapes(world: World, no_supervisor: None) -> World:
    """A world with a frozen data set: 16 pairs to train on, 4 held out."""
    for number in range(1, 21):
        scored(world, number)
    by_rule(world)
    freeze(world.db, USER, "shapes", heldout_percent=20)
    return world


def queued(world: World, kind: str, **values: Any) -> tuple[RunFolder, TrainConfig]:
    job = queue.submit(world.db, world.settings, kind, {"dataset": "shapes", **values}, USER)
    run = RunFolder(world.folder.run(job.id))
    config = run.job().parsed()
    assert isinstance(config, TrainConfig)
    return run, config


def card(world: World, kind: str, metrics: dict[str, float] | None = None, **values: Any) -> str:
    run, config = queued(world, kind, **values)
    return training_card(run, run.job(), config, "my adapter", METRICS if metrics is None else metrics)


def fact(text: str, name: str) -> str:
    """The cell beside a name."""
    found = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.M)
    assert found, f"the card has no {name}"
    return found[1]


@pytest.mark.parametrize(
    ("kind", "paper", "learnt"),
    [
        ("dpo", "2305.18290", "the preference in each pair"),
        ("steerlm", "2310.05344", "every scored answer"),
        ("rejection", "2307.09288", "helpfulness + correctness + coherence"),
        ("sft", "2304.08485", "reference answers"),
    ],
)
def test_a_card_tells_method_data_and_settings(shapes: World, kind: str, paper: str, learnt: str) -> None:
    run, config = queued(shapes, kind)
    text, told = training_card(run, run.job(), config, "my adapter", METRICS), read_lineage(run)
    assert paper in fact(text, "method")
    assert "2402.10884" in fact(text, "method")
    assert learnt in fact(text, "learnt from")
    assert fact(text, "base model") == "`demo`"
    assert fact(text, "started from") == "the base"
    assert fact(text, "data set") == "shapes"
    assert fact(text, "hash") == f"`{told['dataset']['hash']}`"
    assert fact(text, "raters") == "gemini · plumb-1 · all answers together (judge, 20 judgements)"
    assert fact(text, "rubrics") == "`plumb-1`"
    assert fact(text, "rule").startswith("pairs that are accepted; answers scored by people before judges; 20 %")
    assert '20 by `{"judge": null, "margin": 2' in fact(text, "pairs made")
    rows = {"dpo": "| pairs | 16 | 2 | 2 |", "steerlm": "| answers | 32 | 4 | 0 |"}
    assert rows.get(kind, "| answers | 16 | 2 | 0 |") in text
    assert kind == "dpo" or "| pairs | 0 | 2 | 2 |" in text
    assert "| loss | 0.4123 |" in text
    assert "| report_reward_accuracy | 0.5 |" in text
    assert "chosen by them" in text
    assert "looked at once, at the end" in text
    for name in TrainConfig.model_fields:
        fact(text, name)
    assert fact(text, "trl")
    assert fact(text, "transformers")


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_to_repeat_is_the_job(shapes: World, kind: str) -> None:
    """The JSON of the card, submitted again, gives the same frozen configuration and the same rows."""
    first, config = queued(shapes, kind, learning_rate=3e-4, epochs=1.5, fraction=0.5)
    text = training_card(first, first.job(), config, "my adapter", METRICS)
    submitted = json.loads(re.findall(r"```json\n(.*?)\n```", text, re.S)[0])
    again = queue.submit(shapes.db, shapes.settings, submitted["kind"], submitted["config"], USER)
    second = RunFolder(shapes.folder.run(again.id))
    assert second.job().config == first.job().config
    assert list(second.rows()) == list(first.rows())
    assert "python -m jobs submit job.json" in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_front_matter_is_the_hubs(shapes: World, kind: str) -> None:
    text = card(shapes, kind)
    front = yaml.safe_load(text.removeprefix("---\n").partition("\n---\n")[0])
    assert front["library_name"] == "peft"
    assert (front["base_model"], front["base_model_relation"]) == ("demo", "adapter")
    assert {kind, "lora", "plumb"} <= set(front["tags"])
    assert body_of(text).lstrip().startswith("# my adapter\n")


def test_the_loss_is_told_with_its_weights(shapes: World) -> None:
    values: Any = {
        "loss": "0.8 sigmoid + 0.2 bco_pair + 1.0 sft",
        "beta": 0.3,
        "image_weight": 1,
        "anchor_weight": 0.5,
    }
    text = card(shapes, "dpo", **values)
    told = fact(text, "loss")
    assert told.startswith("0.8 sigmoid + 0.2 bco_pair + 1.0 sft (TRL's names), β 0.3, reference")
    assert "+ 1 × image-conditional term (mDPO" in told
    assert "+ 0.5 × anchor" in told
    assert "2406.11839" in told
    assert "β (0.3)" in text
    smooth = card(shapes, "dpo", loss="robust", label_smoothing=0.2)
    assert "robust (TRL's names), β 0.1" in smooth
    assert "label smoothing 0.2" in smooth
    assert "mDPO" not in fact(smooth, "loss")
    assert "negative log-probability" in card(shapes, "sft")


def test_what_was_trained(shapes: World) -> None:
    plain = fact(card(shapes, "sft"), "trained parts")
    assert plain == (
        "LoRA (rank 128, alpha 256, dropout 0.05) on all linear layers of the language model but its head; "
        "projector and tower untouched"
    )
    projector = fact(card(shapes, "sft", train_projector=True, lora_targets="q_proj, v_proj"), "trained parts")
    assert "on q_proj, v_proj of the language model; projector in full, learning rate 2e-05" in projector
    run, config = queued(shapes, "dpo", lora_r=4)
    run.adapter.mkdir()
    saved = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "modules_to_save": ["multi_modal_projector"]}
    (run.adapter / "adapter_config.json").write_text(json.dumps(saved), encoding="utf-8")
    told = fact(training_card(run, run.job(), config, "x", {}), "trained parts")
    assert told.startswith("LoRA (rank 16, alpha 32, dropout 0)"), "what was saved, not what the form said"
    assert "projector as in the adapter that it started from" in told


def test_the_adapter_that_it_started_from_is_named(shapes: World) -> None:
    start = adapter(shapes, "steerlm")
    text = card(shapes, "dpo", start_adapter=start)
    told = fact(text, "started from")
    assert told.startswith(f"adapter {start}, before (SteerLM, job ")
    assert "files `0000" in told
    assert "the layers of the adapter that it started from" in fact(text, "trained parts")
    assert "`start_adapter` is the number of the adapter above" in text


def test_what_was_done_to_the_rows_is_told(shapes: World) -> None:
    text = card(shapes, "dpo", fraction=0.5, flip=0.25, max_steps=1, batch_size=4, global_batch=4)
    assert "| pairs | 8 | 2 | 2 |" in text
    assert "The rows to train on are a fraction, 0.5 of 16." in text
    assert "In 2 pairs to train on, chosen and rejected were swapped on purpose." in text
    assert "1 step saw 4 of the rows to train on." in text
    plain = card(shapes, "dpo")
    for words in ("fraction,", "swapped", "saw", "left out"):
        assert words not in plain


def test_the_chosen_step_and_a_missing_report_are_told(shapes: World) -> None:
    text = card(shapes, "dpo", {"best_step": 12.0, "heldout_loss": 0.5})
    assert "The weights are those of step 12, which had the best held-out accuracy." in text
    assert "This run had no pairs for the report." in text
    assert "This run had no pairs for the report." not in card(shapes, "dpo")
    assert "none\n" in card(shapes, "dpo", {})


def test_a_card_says_what_the_bases_own_processor_would_do_otherwise(shapes: World) -> None:
    run, config = queued(shapes, "dpo")
    text = training_card(run, run.job(), config, "x", METRICS, None, Profile("square", 'Be "brief".'))
    assert "images were padded to a square" in text
    assert 'began with the system prompt "Be \\"brief\\"."' in text
    assert "In training" not in training_card(run, run.job(), config, "x", METRICS)
    said = training_card(run, run.job(), config, "x", METRICS, None, Profile("processor", "Hi."))
    assert "padded" not in said
    assert "Hi." in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_steerlm_card_says_what_to_ask_with(shapes: World, kind: str) -> None:
    text = card(shapes, kind)
    asked = f"```\n{SENTENCE}\n{attribute_string()}\n```"
    assert (asked in text) == (kind == "steerlm")
    assert "PeftModel.from_pretrained" in text


def test_the_revision_of_a_hubs_base(shapes: World) -> None:
    run, config = queued(shapes, "sft", model="owner/model")
    text = training_card(run, run.job(), config, "x", {}, revision="abc123")
    assert fact(text, "base model") == "`owner/model`, revision `abc123`"
    assert 'from_pretrained("owner/model", revision="abc123")' in text
    assert "assembled by Plumb" not in text
    assert "assembled by Plumb" in card(shapes, "sft")


def test_a_run_folder_without_lineage_gets_a_card_all_the_same(shapes: World) -> None:
    for kind in KINDS:
        run, config = queued(shapes, kind)
        run.lineage.unlink()
        text = training_card(run, run.job(), config, "x", METRICS)
        assert fact(text, "hash") == f"`{run.job().dataset_hash}`"
        assert fact(text, "started from") == "the base"
        assert "| raters |" not in text
        assert "| pairs | 16 | 2 | 2 |" in text or "| pairs | 0 | 2 | 2 |" in text, "counted from the rows"


def test_a_set_from_before_raters_were_kept(shapes: World) -> None:
    run, config = queued(shapes, "dpo")
    told = read_lineage(run)
    told["dataset"]["rule"] = {"statuses": ["accepted"], "heldout_percent": 10.0, "seed": 0}
    told["raters"], told["rubrics"] = [], []
    run.lineage.write_text(json.dumps(told), encoding="utf-8")
    text = training_card(run, run.job(), config, "x", METRICS)
    assert fact(text, "raters") == "not recorded"
    assert fact(text, "rubrics") == "none"
    assert fact(text, "rule") == "pairs that are accepted; 10 % held out by image, seed 0"


def test_no_text_of_a_user_breaks_the_card(shapes: World) -> None:
    """A bar would end a cell, a line break a row, a tag would be HTML on a hub."""
    freeze(shapes.db, USER, "a | b\n<b>x</b>", heldout_percent=20)
    values = {"dataset": "a | b\n<b>x</b>", "watched_prompts": "One | two \n <i>three</i>"}
    run, config = queued(shapes, "dpo", **values)
    text = training_card(run, run.job(), config, f"{EVIL}\n# not a heading", METRICS)
    assert fact(text, "data set") == "a \\| b &lt;b>x&lt;/b>"
    assert fact(text, "watched_prompts") == "One \\| two &lt;i>three&lt;/i>"
    assert not re.search(r"^# not a heading", text, re.M)
    shown = Shape(card_html(text))
    assert "script" not in {tag for tag, _ in shown.tags}
    assert "a | b <b>x</b>" in shown.text, "and is read as it was written"
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
    assert bars <= {3, 5}


def test_small_pieces() -> None:
    assert cell("a\n b | c \\ <d>") == "a b \\| c \\\\ &lt;d>"
    assert code("a|b`c") == "`a\\|b'c`"
    assert table({}, "metric") == "none\n"
    assert table({"a": 0.123456, "b": "x|y"}, "metric") == (
        "| metric | value |\n|---|---|\n| a | 0.1235 |\n| b | x\\|y |\n"
    )
