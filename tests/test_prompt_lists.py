"""Lists of prompts: every shape that people have, and what is told of one that is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factories import png
from jobs import prompt_lists
from jobs.prompt_lists import MOST_PROMPTS, MOST_TURNS, Prompt, read_prompts
from storage.errors import UserError

#: Beside this repository, where they are at all.
BENCHMARKS = Path(__file__).resolve().parents[2] / "shared" / "benchmarks"


def written(folder: Path, *rows: Any, name: str = "list.jsonl") -> Path:
    """A file of these lines: a text as it stands, anything else as JSON."""
    file = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def refusal(file: Path, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_prompts(file, **more)
    return str(caught.value)


def real(*parts: str) -> Path:
    file = BENCHMARKS.joinpath(*parts)
    if not file.exists():
        pytest.skip(f"{file} is missing: the benchmarks' files are not kept in this repository")
    return file


def texts(prompt: Prompt) -> list[str]:
    return [prompt.text, *("".join(part["text"] for part in parts) for parts in prompt.following)]


# the shapes --------------------------------------------------------------------------------------------------


def test_mt_benchs_lines(tmp_path: Path) -> None:
    row = {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."], "reference": ["one", "two"]}
    (prompt,) = read_prompts(written(tmp_path, row))
    assert (prompt.id, prompt.category, prompt.turns, prompt.reference) == ("81", "writing", 2, ("one", "two"))
    assert texts(prompt) == ["Write.", "Again."]
    assert prompt.messages == ({"role": "user", "content": [{"type": "text", "text": "Write."}]},)


def test_llava_benchs_lines_with_a_folder_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "001.jpg").write_bytes(png())
    rows = [{"image": "001.jpg", "text": "Describe it.", "category": "detail", "question_id": 0}]
    (prompt,) = read_prompts(written(tmp_path, *rows), folder)
    assert (prompt.id, prompt.category, prompt.text) == ("0", "detail", "Describe it.")
    assert prompt.images == (folder / "001.jpg",)
    assert [part["type"] for part in prompt.messages[-1]["content"]] == ["image", "text"]
    assert "is not beside the list" in refusal(tmp_path / "list.jsonl")


def test_images_lie_beside_the_list_or_in_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for file in (tmp_path / "a.png", tmp_path / "images" / "b.png"):
        file.write_bytes(png())
    (prompt,) = read_prompts(written(tmp_path, {"prompt": "Which?", "images": ["a.png", "b.png"]}))
    assert prompt.images == (tmp_path / "a.png", tmp_path / "images" / "b.png")


def test_messages_with_earlier_answers(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    shown = [{"type": "text", "text": "And here?"}, {"type": "image", "image": "a.png"}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A circle."},
        {"role": "user", "content": shown},
    ]
    (prompt,) = read_prompts(written(tmp_path, {"messages": messages, "image": "a.png", "id": "x"}))
    assert [message["role"] for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in prompt.messages[1]["content"]] == ["image", "text"], "images come first"
    assert prompt.text == "And here?"
    assert len(prompt.images) == 2


def test_plain_lines_and_a_mixture(tmp_path: Path) -> None:
    plain = read_prompts(written(tmp_path, "What is a circle?", "", "  And a square?\r", name="list.txt"))
    assert [(one.text, one.line) for one in plain] == [("What is a circle?", 1), ("And a square?", 3)]
    assert len({one.id for one in plain}) == 2
    rows = [{"prompt": "One?"}, {"turns": ["Two?", "Three?"]}, {"text": "Four?"}]
    mixed = written(tmp_path, *rows, name="list.txt")
    assert [text for one in read_prompts(mixed) for text in texts(one)] == ["One?", "Two?", "Three?", "Four?"]


def test_a_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    file = tmp_path / "list.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "One?"}\r\n{"prompt": "Two?"}\r\n')
    assert [one.text for one in read_prompts(file)] == ["One?", "Two?"]


def test_the_first_so_many(tmp_path: Path) -> None:
    file = written(tmp_path, {"prompt": "One?"}, {"prompt": "Two?", "image": "gone.png"}, {"prompt": "Three?"})
    assert [one.text for one in read_prompts(file, limit=1)] == ["One?"], "an image that is not asked for may lack"
    assert "line 2" in refusal(file, limit=2)


def test_the_real_files() -> None:
    mt_bench = read_prompts(real("mt_bench", "question.jsonl"))
    assert (len(mt_bench), {one.turns for one in mt_bench}) == (80, {2})
    assert {one.category for one in mt_bench} >= {"writing", "math", "humanities"}
    assert any(len(one.reference) == 2 for one in mt_bench)
    assert len(read_prompts(real("vicuna_bench", "question.jsonl"))) == 80
    assert len(read_prompts(real("ifeval", "input_data.jsonl"))) == 541


def test_the_real_llava_bench(tmp_path: Path) -> None:
    file = real("llava_bench_wild", "questions.jsonl")
    told = refusal(file, images=tmp_path)
    assert "line 1: the image '001.jpg'" in told
    assert "; and 50 more" in told
    for number in range(1, 25):
        (tmp_path / f"{number:03}.jpg").write_bytes(png())
    prompts = read_prompts(file, tmp_path)
    assert (len(prompts), {len(one.images) for one in prompts}) == (60, {1})


# what is broken ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "it is not JSON"),
        ("[1]", "a list of 1"),
        ("null", "it is no object with a prompt, but nothing"),
        ({}, "it needs one of messages, turns, prompt, text, and has none"),
        ({"prompt": "a", "turns": ["b"]}, "has turns and prompt"),
        ({"prompt": 3}, "prompt must be a text, not a number"),
        ({"prompt": True}, "not true"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": "\ud800"}, "half a character"),
        ({"turns": []}, "turns must be a list of 1"),
        ({"turns": "a"}, "not a text"),
        ({"turns": ["a", None]}, "turns must be a text, not nothing"),
        ({"turns": ["a"] * (MOST_TURNS + 1)}, f"1 to {MOST_TURNS} questions"),
        ({"messages": []}, "not a list of 0"),
        ({"messages": {"role": "user"}}, "not an object"),
        ({"messages": ["a"]}, "message 1 is of None"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "message 1 is of 'assistant'"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "'assistant' has"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "message 2"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "the user's q"),
        ({"messages": [{"role": "system", "content": "a"}]}, "the last message is of 'system'"),
        ({"messages": [{"role": "user", "content": []}]}, "message 1 is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": "x"}]}]}, "type 'video'"),
        ({"messages": [{"role": "user", "content": [3]}]}, "type None"),
        ({"prompt": "a", "images": ["/etc/passwd"]}, "within the list's folder"),
        ({"prompt": "a", "images": ["../secret.png"]}, "without “..”"),
        ({"prompt": "a", "images": [3]}, "an image's name must be a text"),
        ({"prompt": "a", "images": ["gone.png"]}, "the image 'gone.png' is not beside the list"),
        ({"prompt": "a", "image": "a.png", "images": []}, "both image and images"),
        ({"prompt": "a", "id": [1]}, "id must be a text or a whole number, not a list of 1"),
        ({"prompt": "a", "id": True}, "not true"),
        ({"prompt": "a", "id": "x" * 201}, "201 characters"),
        ({"prompt": "a", "category": 1.5}, "category must be"),
        ({"prompt": "a", "reference": {"a": 1}}, "reference must be"),
    ],
)
def test_a_broken_line_is_told_with_its_number(tmp_path: Path, row: Any, words: str) -> None:
    told = refusal(written(tmp_path, {"prompt": "fine"}, "", row))
    assert told.startswith("prompts: list.jsonl cannot be used: line 3: ")
    assert words in told
    assert "line 1" not in told


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    told = refusal(written(tmp_path, *["{"] * 25, {"prompt": "fine"}))
    assert told.count("it is not JSON") == prompt_lists.MOST_TOLD
    assert "line 10:" in told
    assert told.endswith("; and 15 more.")


def test_an_id_stands_once(tmp_path: Path) -> None:
    told = refusal(written(tmp_path, {"prompt": "a", "id": 7}, {"prompt": "b", "question_id": "7"}))
    assert "line 2: the id '7' stands in line 1 already" in told


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"fine\nf\xfcr alle\n")
    assert "line 2: it is not UTF-8 (byte 2)" in refusal(file)


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "list.jsonl"
    file.write_bytes(content)
    assert "is empty" in refusal(file)


def test_files_that_are_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no file" in refusal(tmp_path / "gone.jsonl")
    assert "is a folder" in refusal(tmp_path)
    assert "cannot be read" in refusal(Path("\0"))
    assert "one list in brackets" in refusal(written(tmp_path, "[", '{"prompt": "a"}', "]", name="list.json"))
    assert "no folder" in refusal(written(tmp_path, {"prompt": "a"}), images=tmp_path / "gone")
    assert "line 2: it is nested too deeply" in refusal(written(tmp_path, {"prompt": "a"}, "[" * 100_000))
    assert "line 1: it cannot be read" in refusal(written(tmp_path, '{"prompt": "a", "id": ' + "9" * 5000 + "}"))
    monkeypatch.setattr(prompt_lists, "LARGEST_FILE", 10)
    assert "Is it the right file?" in refusal(written(tmp_path, {"prompt": "a long one"}))


def test_too_many(tmp_path: Path) -> None:
    file = written(tmp_path, *(f"Question {number}?" for number in range(MOST_PROMPTS + 1)), name="list.txt")
    assert f"has {MOST_PROMPTS + 1:,} prompts" in refusal(file)
    assert len(read_prompts(file, limit=MOST_PROMPTS)) == MOST_PROMPTS


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from(["list.jsonl", "list.txt", "list"]))
def test_whatever_a_file_holds_is_read_or_refused(tmp_path: Path, content: bytes, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    try:
        prompts = read_prompts(file)
    except UserError:
        return
    assert prompts
    assert all(one.text.strip() and one.id for one in prompts)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = ["prompt", "turns", "messages", "text", "images", "image", "id", "category", "reference"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=4))
def test_whatever_a_line_holds_is_read_or_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    file = written(tmp_path, row)
    try:
        found = read_prompts(file)
    except UserError as refused:
        found, told = (), str(refused)
    else:
        told = "line 1"
    assert "line 1" in told
    for prompt in found:
        assert prompt.messages[-1]["role"] == "user"
        json.dumps(prompt.messages, ensure_ascii=False).encode("utf-8")
