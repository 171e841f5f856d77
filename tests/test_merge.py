"""The merge job on the tiny LLaVA: the folder loads by `from_pretrained` and answers as the adapter does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from jobs import merged
from jobs.merged import Merged, check_name, list_merged, name_for, read_merged
from jobs.reporter import Reporter
from jobs.runs import RunFolder
from jobs.worker import work
from storage.errors import NotFound, UserError

QUESTION = "what shape is in the image?"


def make_adapter(
    folder: Path, projector: bool = False, base: str | None = None, seed: int = 1, source: Path | None = None
) -> Path:
    """A LoRA on the language model, with weights large enough to be heard; with a trained projector if asked.

    Args:
        base: what it says it was trained on, if that is a lie.
        source: the folder of its base; None for the tiny LLaVA.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    from jobs.gpu.lora import language_linears
    from jobs.gpu.projector import find_projector

    source = source or tiny.tiny_llava()
    model = AutoModelForImageTextToText.from_pretrained(source)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=language_linears(model),
        modules_to_save=[find_projector(model)] if projector else None,
        task_type="CAUSAL_LM",
    )
    policy = get_peft_model(model, config)
    with torch.no_grad():
        for name, tensor in policy.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.5)
            elif "modules_to_save" in name:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    policy.peft_config["default"].base_model_name_or_path = base or str(source)
    policy.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n\n# colours\n\nTrained on shapes.\n")
    return folder


def merge_run(folder: Path, adapter: Path, /, **changes: Any) -> RunFolder:
    config = {"adapter": 5, "name": "whole", "dtype": "float32", **changes}
    return tiny.frozen_run(folder, "merge", config, adapters={5: adapter})


def ended(run: RunFolder) -> dict[str, Any]:
    return tiny.events(run, "end")[-1]


def target(run: RunFolder, name: str = "whole") -> Path:
    return run.path.parent / "models" / "merged" / name


def greedy(model: Any, processor: Any, colour: str) -> tuple[str, Any]:
    """The greedy answer to the question about a picture, and the logits of the prompt."""
    import torch

    chat = processor.apply_chat_template(tiny.ask(QUESTION, "x"), add_generation_prompt=True, tokenize=False)
    inputs = processor(images=[tiny.picture(colour)], text=[chat], return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :]), logits


@pytest.mark.parametrize("projector", [False, True])
def test_merged_weights_answer_as_the_adapter_does(tmp_path: Path, projector: bool) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    adapter = make_adapter(tmp_path / "adapter", projector)
    run = merge_run(tmp_path / "run", adapter)
    assert work(run.path) == 0, ended(run)
    folder = target(run)
    whole = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    base = AutoModelForImageTextToText.from_pretrained(tiny.tiny_llava()).eval()
    plain = {colour: greedy(base, processor, colour) for colour in ("red", "blue")}
    policy = PeftModel.from_pretrained(base, str(adapter)).eval()
    for colour, (untouched, base_logits) in plain.items():
        said, logits = greedy(whole, processor, colour)
        wanted, wanted_logits = greedy(policy, processor, colour)
        assert said == wanted != untouched
        assert torch.allclose(logits, wanted_logits, atol=1e-4, rtol=0)
        assert not torch.allclose(logits, base_logits, atol=1e-2, rtol=0)
    same = torch.equal(
        whole.get_parameter("model.multi_modal_projector.linear_1.weight"),
        AutoModelForImageTextToText.from_pretrained(tiny.tiny_llava()).get_parameter(
            "model.multi_modal_projector.linear_1.weight"
        ),
    )
    assert same is not projector
    assert not list(folder.glob("adapter*")), "nothing of PEFT is left"
    assert [file.suffix for file in folder.glob("model*")] == [".safetensors"]


def test_what_the_folder_says_of_itself(tmp_path: Path) -> None:
    run = merge_run(tmp_path / "run", make_adapter(tmp_path / "adapter"))
    assert work(run.path) == 0, ended(run)
    folder = target(run)
    made = json.loads((folder / "plumb.json").read_text())
    assert made["base_model"] == str(tiny.tiny_llava())
    assert (made["adapter"], made["adapter_name"], made["job"], made["dtype"]) == (5, "adapter 5", 7, "float32")
    assert len(made["adapter_sha256"]) == 64
    assert list_merged(run.path.parent / "models") == {folder: read_merged(folder)}
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "### colours" in card
    assert card.count("library_name") == 1, "the adapter's front matter is not told twice"
    assert str(folder) in " ".join(event["text"] for event in tiny.events(run, "note"))
    done = [(event["done"], event["total"]) for event in tiny.events(run, "progress")]
    assert done == [(step, 4) for step in range(5)]
    assert sorted(path.name for path in folder.parent.iterdir()) == [".whole.lock", "whole"]


def test_a_merged_folder_is_a_base_for_a_generate_job(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    run = merge_run(tmp_path / "run", adapter)
    assert work(run.path) == 0, ended(run)
    name, file = tiny.store(tmp_path / "images", tiny.picture("blue"))
    rows = [{"sample_id": 1, "messages": tiny.ask(QUESTION, name)}]
    config = {"dtype": "float32", "candidates": 1, "temperature": 0.0, "max_new_tokens": 12}
    said = []
    for label, more, adapters in (
        ("whole", {"model": str(target(run))}, None),
        ("adapted", {"adapter": 5}, {5: adapter}),
        ("base", {}, None),
    ):
        generate = tiny.frozen_run(
            tmp_path / label, "generate", {**config, **more}, rows, [(name, file)], adapters
        )
        assert work(generate.path) == 0, ended(generate)
        said.append(tiny.events(generate, "candidate")[0]["text"])
    whole, adapted, base = said
    assert whole == adapted != base


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "smolvlm", "gemma3"])
def test_merged_weights_of_every_family(tmp_path: Path, family: str) -> None:
    """Through the generate job: with its own processor, saved and read again."""
    import tiny_vlms

    base = tiny_vlms.folder(family)
    adapter = make_adapter(tmp_path / "adapter", projector=True, source=base)
    merging = merge_run(tmp_path / "run", adapter, model=str(base))
    assert work(merging.path) == 0, ended(merging)
    name, file = tiny.store(tmp_path / "images", tiny.picture("blue", 40))
    rows = [{"sample_id": 1, "messages": tiny.ask(QUESTION, name)}, {"sample_id": 2, "messages": tiny.ask("why?")}]
    config = {"dtype": "float32", "candidates": 1, "temperature": 0.0, "max_new_tokens": 8}
    said = []
    for label, more, adapters in (
        ("whole", {"model": str(target(merging))}, None),
        ("adapted", {"model": str(base), "adapter": 5}, {5: adapter}),
        ("base", {"model": str(base)}, None),
    ):
        run = tiny.frozen_run(tmp_path / label, "generate", {**config, **more}, rows, [(name, file)], adapters)
        assert work(run.path) == 0, ended(run)
        said.append([event["text"] for event in tiny.events(run, "candidate")])
    whole, adapted, plain = said
    assert len(whole) == 2
    assert whole == adapted != plain


def test_what_the_processor_does_is_part_of_what_was_merged() -> None:
    """Under another system prompt the same weights are something else; older folders say nothing of it."""
    old = Merged("demo", 1, "colours", "a" * 64, "float32", 2, "2026-11-22T20:00:00+00:00")
    one, other = (replace(old, image_fit="processor", system_prompt=text) for text in ("", "Be brief."))
    assert one.same_content(replace(one, job=3))
    assert not one.same_content(other)
    assert not one.same_content(replace(one, image_fit="square"))
    assert one.same_content(old)
    assert old.same_content(other)


def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path) -> None:
    from safetensors import safe_open

    run = merge_run(tmp_path / "run", make_adapter(tmp_path / "adapter", projector=True), dtype="bfloat16")
    assert work(run.path) == 0, ended(run)
    with safe_open(target(run) / "model.safetensors", "pt") as file:
        dtypes = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    assert dtypes == {"BF16"}
    assert json.loads((target(run) / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    first = merge_run(tmp_path / "first", adapter)
    assert work(first.path) == 0, ended(first)
    before = {file.name: file.stat().st_mtime_ns for file in target(first).iterdir()}
    again = merge_run(tmp_path / "again", adapter)
    assert work(again.path) == 0, ended(again)
    assert "there already" in tiny.events(again, "note")[-1]["text"]
    other = merge_run(tmp_path / "other", make_adapter(tmp_path / "adapter-2", seed=2))
    assert work(other.path) == 1
    assert "'whole' is taken" in ended(other)["reason"]
    coarse = merge_run(tmp_path / "coarse", adapter, dtype="bfloat16")
    assert work(coarse.path) == 1
    assert "in float32" in ended(coarse)["reason"]
    assert {file.name: file.stat().st_mtime_ns for file in target(first).iterdir()} == before


def test_a_stop_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = merge_run(tmp_path / "run", make_adapter(tmp_path / "adapter"))
    told = Reporter.progress

    def stop_when_written(self: Reporter, done: float, total: float, unit: str = "items") -> None:
        told(self, done, total, unit)
        if done == 3:
            run.ask_to_stop()

    monkeypatch.setattr(Reporter, "progress", stop_when_written)
    assert work(run.path) == 0
    assert ended(run)["status"] == "stopped"
    assert [path.name for path in target(run).parent.iterdir()] == [".whole.lock"]


def test_what_a_killed_worker_left_is_cleared_away(tmp_path: Path) -> None:
    run = merge_run(tmp_path / "run", make_adapter(tmp_path / "adapter"))
    left = target(run).with_name(".whole.draft-3")
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    assert list_merged(run.path.parent / "models") == {}
    assert work(run.path) == 0, ended(run)
    assert not left.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization": "4bit"}, "is quantized"),
        ({"adapter": 6}, "adapter 6 is not in the run folder"),
        ({"name": ".."}, "name = '..'"),
    ],
)
def test_what_cannot_be_merged(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    run = merge_run(tmp_path / "run", make_adapter(tmp_path / "adapter"), **changes)
    assert work(run.path) == 1
    assert words in ended(run)["reason"]
    assert list_merged(run.path.parent / "models") == {}


def test_another_bases_adapter_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = merge_run(tmp_path / "strange", make_adapter(tmp_path / "adapter", base="llava-hf/another-base"))
    assert work(strange.path) == 1
    assert "trained on 'llava-hf/another-base'" in ended(strange)["reason"]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    full = merge_run(tmp_path / "full", make_adapter(tmp_path / "fitting"))
    assert work(full.path) == 1
    assert "0.00 GB are free" in ended(full)["reason"]
    assert not list(target(full).parent.glob("[!.]*"))


def test_a_base_that_says_it_is_quantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = merge_run(tmp_path / "run", make_adapter(tmp_path / "adapter"))
    from jobs.gpu.loading import load_for

    def quantized(*arguments: Any) -> Any:
        loaded = load_for(*arguments)
        loaded.model.config.quantization_config = {"load_in_4bit": True}
        return loaded

    monkeypatch.setattr("jobs.gpu.merge.load_for", quantized)
    assert work(run.path) == 1
    assert "is quantized" in ended(run)["reason"]


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a b", "ä", "x" * 81, "a\n"])
def test_names_that_lead_elsewhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not begin with a dot"):
        check_name(name)
    with pytest.raises(UserError):
        merged.find_merged(tmp_path, name)


@pytest.mark.parametrize(
    ("adapter", "name"),
    [
        ("colours", "colours"),
        ("my pairs, β 0.1", "my-pairs-0.1"),
        ("../x", "x"),
        ("…", "adapter-3"),
        ("y" * 90, "y" * 80),
    ],
)
def test_names_made_from_adapters(adapter: str, name: str) -> None:
    assert name_for(adapter, 3) == name
    assert check_name(name_for(adapter, 3)) == name


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="none yet"):
        merged.find_merged(tmp_path, "whole")
    made = Merged("demo", 1, "colours", "a" * 64, "float32", 2, "2026-11-22T20:00:00+00:00")
    folder = merged.merged_root(tmp_path) / "whole"
    folder.mkdir(parents=True)
    (folder / "plumb.json").write_text(made.text())
    assert merged.find_merged(tmp_path, "whole") == (folder, made)
    (folder / "plumb.json").write_text('{"base_model": 3')
    assert read_merged(folder) is None
