"""The reference's log-probabilities: computed once, found again by content, never found for something else."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from jobs.gpu.loading import Loaded
from jobs.gpu.references import (
    Found,
    ReferenceBook,
    answer_keys,
    context_of,
    file_digest,
    look_up,
    processor_settings,
)
from jobs.gpu.shared_prefix import SharedPrefix
from jobs.reporter import Stopped
from jobs.runs import RunFolder
from jobs.worker import work
from storage.errors import PlumbError
from test_dpo_job import FAST, dpo_run, last_end, metrics, pair

pytestmark = pytest.mark.slow  # as a whole: see the marker in pyproject.toml


def nothing(*_: int) -> None:
    """For `tell` and `wait`."""


# In jobs


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts forward passes: of the reference, and of all."""
    from jobs.gpu.scoring import PairScorer

    counts = {"reference": 0, "all": 0}
    reference, every = PairScorer.__call__, SharedPrefix.score

    def counted_reference(self: Any, *arguments: Any) -> Any:
        counts["reference"] += 1
        return reference(self, *arguments)

    def counted(self: Any, *arguments: Any) -> Any:
        counts["all"] += 1
        return every(self, *arguments)

    monkeypatch.setattr(PairScorer, "__call__", counted_reference)
    monkeypatch.setattr(SharedPrefix, "score", counted)
    return counts


def take(counts: dict[str, int]) -> dict[str, int]:
    taken = dict(counts)
    counts.update(reference=0, all=0)
    return taken


def test_a_second_run_asks_the_reference_nothing(tmp_path: Path, forwards: dict[str, int]) -> None:
    first = dpo_run(tmp_path / "one", FAST)
    assert work(first.path) == 0, last_end(first)
    # 14 pairs in batches of 4, and 6 of them blanked; a trial; 8 steps; two evaluations of the 6, twice.
    assert take(forwards) == {"reference": 4, "all": 4 + 2 + 1 + 8 + 2 * 2 * 2}
    second = dpo_run(tmp_path / "two", {**FAST, "beta": 0.5, "seed": 3, "max_steps": 2, "evaluations": 1})
    assert work(second.path) == 0
    assert take(forwards) == {"reference": 0, "all": 1 + 2 + 2 * 2}
    note = next(e["text"] for e in tiny.events(second, "note") if e["text"].startswith("Reference:"))
    assert note == ("Reference: 28 of 28 answers were known from earlier runs, 0 computed in 0 forward passes.")


def test_runs_with_and_without_the_book_are_the_same(tmp_path: Path, forwards: dict[str, int]) -> None:
    runs = [dpo_run(tmp_path / name, FAST) for name in ("one", "two")]
    assert [work(run.path) for run in runs] == [0, 0]
    assert metrics(runs[0]) == metrics(runs[1])


def test_flipped_and_new_pairs_of_known_answers_compute_nothing_again(
    tmp_path: Path, forwards: dict[str, int]
) -> None:
    rows = [pair(n, []) for n in range(4)]
    assert work(dpo_run(tmp_path / "one", {**FAST, "max_steps": 1}, rows).path) == 0
    take(forwards)
    flipped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    assert work(dpo_run(tmp_path / "two", {**FAST, "max_steps": 1}, flipped).path) == 0
    assert take(forwards)["reference"] == 0
    rows[3]["chosen"] = "It is something else."
    assert work(dpo_run(tmp_path / "three", {**FAST, "max_steps": 1}, rows).path) == 0
    assert take(forwards)["reference"] == 1


def test_a_run_that_is_stopped_keeps_what_it_computed(tmp_path: Path, forwards: dict[str, int]) -> None:
    run = dpo_run(tmp_path / "one", FAST)
    from jobs.gpu.scoring import PairScorer

    compute = PairScorer.__call__

    def then_stop(self: Any, *arguments: Any) -> Any:
        found = compute(self, *arguments)
        if forwards["reference"] == 2:
            run.ask_to_stop()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PairScorer, "__call__", then_stop)
        assert work(run.path) == 0
    assert last_end(run)["status"] == "stopped"
    assert take(forwards)["reference"] == 2
    assert work(dpo_run(tmp_path / "two", FAST).path) == 0
    assert take(forwards)["reference"] == 2


def test_the_numbers_are_the_bases_own(tmp_path: Path) -> None:
    """Against transformers' plain forward of the base, one sequence at a time."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from jobs.gpu.answering import end_tokens
    from jobs.gpu.frames import answer_frame, answer_ids
    from jobs.gpu.prompts import encode, from_run

    run = dpo_run(tmp_path / "one", {**FAST, "max_steps": 8})
    assert work(run.path) == 0
    (file,) = (tmp_path / "references").glob("*.jsonl")
    kept = {entry["key"]: entry["logp"] for entry in map(json.loads, filter(None, file.read_text().split("\n")))}
    rows = list(run.rows())
    model = AutoModelForImageTextToText.from_pretrained(tiny.tiny_llava(), dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tiny.tiny_llava())
    ends = end_tokens(model, processor.tokenizer)
    for row, keys in zip(rows, answer_keys(run, rows), strict=True):
        messages = from_run(run, row["messages"])
        encoded = encode(processor, [messages])
        for side, key in zip(("chosen", "rejected"), keys, strict=True):
            answer = answer_ids(processor, row[side], answer_frame(processor, messages, ends))
            ids = torch.cat([encoded["input_ids"], torch.tensor([answer])], dim=1)
            images = {"pixel_values": encoded["pixel_values"]} if "pixel_values" in encoded else {}
            with torch.no_grad():
                words = model(input_ids=ids, **images).logits[0].log_softmax(dim=-1)
            start = ids.shape[1] - len(answer)
            wanted = sum(float(words[start + place - 1, token]) for place, token in enumerate(answer))
            assert kept[key] == pytest.approx(wanted, abs=1e-4)


# The context


@pytest.fixture(scope="module")
def tiny_loaded() -> Loaded:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = tiny.tiny_llava()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return Loaded(str(folder), model, AutoProcessor.from_pretrained(folder), torch.device("cpu"))


def context(tmp_path: Path, loaded: Loaded, **changes: Any) -> str:
    given: dict[str, Any] = {"ends": frozenset({1}), "adapter": None, "path": "shared prefix", **changes}
    return context_of(loaded, given["ends"], tmp_path, tmp_path / "references", given["adapter"], given["path"])


def reloaded(folder: Path, **changes: Any) -> Loaded:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    arguments = {"dtype": torch.float32, **changes}
    model = AutoModelForImageTextToText.from_pretrained(folder, **arguments)
    return Loaded(str(folder), model, AutoProcessor.from_pretrained(folder), torch.device("cpu"))


def test_a_copy_elsewhere_is_the_same_model(tmp_path: Path, tiny_loaded: Loaded) -> None:
    shutil.copytree(tiny.tiny_llava(), tmp_path / "copy")
    assert context(tmp_path, reloaded(tmp_path / "copy")) == context(tmp_path, tiny_loaded)


def test_using_the_processor_changes_nothing(tmp_path: Path, tiny_loaded: Loaded) -> None:
    from jobs.gpu.prompts import encode

    before = context(tmp_path, tiny_loaded)
    encode(tiny_loaded.processor, [tiny.ask("a", tiny.picture()), tiny.ask("longer")])
    tiny_loaded.processor.tokenizer(["a", "longer"], padding=True, truncation=True, max_length=4)
    assert context(tmp_path, tiny_loaded) == before


def change_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "q_proj" in name)
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_json(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        target = found.get("image_processor", found)
        target.update(values)
        (folder / name).write_text(json.dumps(found))

    return change


def change_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("assistant", "helper"))


CHANGES: dict[str, Callable[[Path], None]] = {
    "a weight": change_weights,
    "how images are normalised": change_json("processor_config.json", image_mean=[0.1, 0.2, 0.3]),
    "the template": change_template,
    "a layer of the tower": change_json("config.json", vision_feature_layer=-2),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_model_or_processor_is_another_context(tmp_path: Path, tiny_loaded: Loaded, what: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny.tiny_llava(), folder)
    CHANGES[what](folder)
    assert context(tmp_path, reloaded(folder)) != context(tmp_path, tiny_loaded)


def test_precision_attention_path_ends_and_adapter_are_part_of_it(tmp_path: Path, tiny_loaded: Loaded) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"lora_alpha": 8}')
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    contexts = [
        context(tmp_path, tiny_loaded),
        context(tmp_path, reloaded(tiny.tiny_llava(), dtype=torch.bfloat16)),
        context(tmp_path, reloaded(tiny.tiny_llava(), attn_implementation="eager")),
        context(tmp_path, tiny_loaded, path="stock"),
        context(tmp_path, tiny_loaded, ends=frozenset({1, 2})),
        context(tmp_path, tiny_loaded, adapter=adapter),
    ]
    (adapter / "adapter_config.json").write_text('{"lora_alpha": 16}')
    contexts.append(context(tmp_path, tiny_loaded, adapter=adapter))
    (adapter / "adapter_model.safetensors").write_bytes(b"others!")
    contexts.append(context(tmp_path, tiny_loaded, adapter=adapter))
    assert len(set(contexts)) == len(contexts)


def test_a_library_of_another_version_is_another_context(
    tmp_path: Path, tiny_loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = context(tmp_path, tiny_loaded)
    monkeypatch.setattr("jobs.gpu.references.versions", lambda: {"torch": "9.9"})
    assert context(tmp_path, tiny_loaded) != before


def test_a_word_more_is_another_processor(tiny_loaded: Loaded) -> None:
    other = tiny.make_processor()
    before = processor_settings(other)
    other.tokenizer.add_tokens(["more"])
    assert processor_settings(other) != before


def test_weights_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, memory = tmp_path / "model.safetensors", tmp_path / "references" / "weights.json"
    file.write_bytes(b"one")
    first = file_digest(file, memory)
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *_: pytest.fail("hashed again"))
        assert file_digest(file, memory) == first
    file.write_bytes(b"two")
    assert file_digest(file, memory) != first
    memory.write_text("{ torn")
    assert file_digest(file, memory) != first


def test_weights_without_files_are_hashed_in_memory(tmp_path: Path, tiny_loaded: Loaded) -> None:
    nowhere = dataclasses.replace(tiny_loaded, name="nobody/knows-this")
    one = context(tmp_path, nowhere)
    assert one == context(tmp_path, nowhere)
    other = reloaded(tiny.tiny_llava())
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1
    assert context(tmp_path, dataclasses.replace(other, name="nobody/knows-this")) != one


# Keys of answers


def keyed(folder: Path, **changes: Any) -> list[tuple[str, str]]:
    images = [tiny.store(folder / "images", tiny.picture(colour)) for colour in ("red", "blue")]
    row = {"messages": tiny.ask("what?", images[0][0]), "chosen": "a", "rejected": "b", **changes}
    run = tiny.frozen_run(folder / "run", "dpo", {"dataset": "x"}, [row], images)
    return answer_keys(run, [row])


def test_an_answers_key_is_its_content(tmp_path: Path) -> None:
    (one,) = keyed(tmp_path / "a")
    assert one == keyed(tmp_path / "b", pair_id=9, split="heldout")[0]
    assert one == keyed(tmp_path / "c", chosen="b", rejected="a")[0][::-1]
    red, blue = (tiny.store(tmp_path / "d", tiny.picture(colour))[0] for colour in ("red", "blue"))
    others = [
        keyed(tmp_path / "e", messages=tiny.ask("what?", blue))[0],
        keyed(tmp_path / "f", messages=tiny.ask("what!", red))[0],
        keyed(tmp_path / "g", messages=tiny.ask("what?", red, red))[0],
        keyed(tmp_path / "h", messages=tiny.ask("what?"))[0],
        keyed(tmp_path / "i", messages=[{"role": "system", "content": "x"}, *tiny.ask("what?", red)])[0],
    ]
    assert len({key for pair in [one, *others] for key in pair}) == 12


def test_an_images_bytes_count_not_its_name(tmp_path: Path) -> None:
    name, _ = tiny.store(tmp_path / "images", tiny.picture("red"))
    row = {"messages": tiny.ask("what?", name), "chosen": "a", "rejected": "b"}
    run = tiny.frozen_run(tmp_path / "run", "dpo", {"dataset": "x"}, [row], [(name, tmp_path / "images" / name)])
    before = answer_keys(run, [row])
    run.image(name).unlink()
    tiny.picture("green").save(run.image(name))
    assert answer_keys(run, [row]) != before


def test_an_answer_under_a_scrap_of_the_image_has_a_key_of_its_own(tmp_path: Path) -> None:
    from jobs.gpu.image_term import make_scraps

    name, file = tiny.store(tmp_path / "images", tiny.picture("red", 64))
    row = {"messages": tiny.ask("what?", name), "chosen": "a", "rejected": "b"}
    run = tiny.frozen_run(tmp_path / "run", "dpo", {"dataset": "x"}, [row], [(name, file)])
    (tmp_path / "scraps").mkdir()
    scraps = make_scraps(run, tmp_path / "scraps", [name])
    keys = {key for folder in (run, scraps) for pair in answer_keys(folder, [row]) for key in pair}
    assert len(keys) == 4
    assert answer_keys(scraps, [row]) == answer_keys(make_scraps(run, tmp_path / "scraps", [name]), [row])


# The book


def test_a_torn_line_costs_that_line_alone(tmp_path: Path) -> None:
    book = ReferenceBook(tmp_path, "c")
    book.add({"a": -1.5, "b": -2.0})
    with book.file.open("ab") as file:
        file.write(b'{"key": "c", "lo')
    again = ReferenceBook(tmp_path, "c")
    assert [again.get(key) for key in "abc"] == [-1.5, -2.0, None]
    again.add({"d": -3.25})
    assert [ReferenceBook(tmp_path, "c").get(key) for key in "abcd"] == [-1.5, -2.0, None, -3.25]


def test_what_is_no_number_is_not_kept(tmp_path: Path) -> None:
    book = ReferenceBook(tmp_path, "c")
    with pytest.raises(ValueError, match="not finite"):
        book.add({"a": math.nan})
    with pytest.raises(PlumbError, match="row 1 is -inf"):
        look_up(
            book, [("a", "b"), ("c", "d")], [1, 1], 1, lambda p: ([-1.0], [-1.0 if p == [0] else -math.inf]),
            nothing, nothing,
        )  # fmt: skip
    assert ReferenceBook(tmp_path, "c").get("a") == -1.0
    assert ReferenceBook(tmp_path, "c").get("c") is None


def test_missing_rows_go_in_batches_of_like_lengths(tmp_path: Path) -> None:
    book = ReferenceBook(tmp_path, "c")
    book.add({"a2": -9.0, "b2": -9.5})
    asked: list[list[int]] = []

    def compute(places: Sequence[int]) -> tuple[list[float], list[float]]:
        asked.append(list(places))
        return [-1.0 * place for place in places], [-10.0 * place for place in places]

    keys = [(f"a{place}", f"b{place}") for place in range(5)]
    values, found = look_up(book, keys, [50, 10, 30, 40, 20], 2, compute, nothing, nothing)
    assert asked == [[1, 4], [3, 0]]
    assert values == [(0.0, 0.0), (-1.0, -10.0), (-9.0, -9.5), (-3.0, -30.0), (-4.0, -40.0)]
    assert found == Found(known=2, computed=8, forwards=2)


def test_runs_on_one_context_take_turns(tmp_path: Path) -> None:
    """The second waits, and then finds everything there."""
    keys = [(f"a{place}", f"b{place}") for place in range(3)]
    begun, go_on = threading.Event(), threading.Event()
    waited: list[int] = []

    def slow(places: Sequence[int]) -> tuple[list[float], list[float]]:
        begun.set()
        assert go_on.wait(30)
        return [-1.0] * len(places), [-2.0] * len(places)

    def first() -> None:
        look_up(ReferenceBook(tmp_path, "c"), keys, [1] * 3, 3, slow, nothing, nothing)

    def wait() -> None:
        waited.append(1)
        go_on.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(30)
    values, found = look_up(
        ReferenceBook(tmp_path, "c"), keys, [1] * 3, 3, lambda _: pytest.fail("computed twice"), nothing, wait
    )
    thread.join()
    assert waited
    assert values == [(-1.0, -2.0)] * 3
    assert found == Found(known=6, computed=0, forwards=0)


def test_who_waits_can_be_stopped(tmp_path: Path) -> None:
    book = ReferenceBook(tmp_path, "c")

    def stop() -> None:
        raise Stopped("stopped by request")

    with book.turn(nothing), pytest.raises(Stopped):
        look_up(
            ReferenceBook(tmp_path, "c"), [("a", "b")], [1], 1, lambda _: pytest.fail("computed"), nothing, stop
        )


def test_a_run_folder_names_where_references_lie(tmp_path: Path) -> None:
    """Beside the models of the data folder, until job.json says it itself."""
    run: RunFolder = dpo_run(tmp_path / "one", {**FAST, "max_steps": 1, "evaluations": 0})
    assert work(run.path) == 0
    assert (tmp_path / "references" / "weights.json").is_file()
