"""The form of a new contest: what it will make, what is wrong with a list, the start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_folders import trained
from factories import USER, World, png
from storage.contests import contest_of_job
from storage.jobs import get_job, list_jobs
from workbench import contest_form
from workbench.contest_desk import Place
from workbench.context import Context
from workbench.pages import contests as page


def handlers(context: Context) -> dict[str, Callable[..., Any]]:
    built = page.build(context)
    return {getattr(fn.fn, "__name__", ""): fn.fn for fn in built.fns.values() if fn.fn is not None}


def request() -> Any:
    return SimpleNamespace(username=USER, session_hash="s", query_params={})


def by_id(updates: dict[Any, Any]) -> dict[str, Any]:
    return {component.elem_id: value for component, value in updates.items() if getattr(component, "elem_id", "")}


def raw(context: Context, **changed: Any) -> list[Any]:
    """What the form's fields hold at first, but for what is `changed`."""
    held: dict[str, Any] = {
        "name": "mine",
        "model": "demo",
        "first": "base",
        "second": "7@lab",
        "third": "",
        "source": contest_form.FILE,
        "files": None,
    }
    more = [*contest_form.sample_controls(), *contest_form.controls()]
    own = [changed.get(name, value) for name, value in held.items()]
    return [*own, *(changed.get(one.path, "" if one.optional else one.default) for one in more)]


def write(folder: Path, *lines: object, name: str = "question.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("\n".join(json.dumps(line) if not isinstance(line, str) else line for line in lines))
    return path


def test_the_form_says_what_it_will_make(context: Context, tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
        {"prompt": "one"},
        {"prompt": "two"},
    )
    assert "3 prompts, 4 questions: 8 answers to draw." in contest_form.told(
        context, raw(context, files=[str(path)])
    )
    three = raw(context, files=[str(path)], third="8@lab", limit="1")
    assert "1 prompt, 2 questions: 6 answers to draw." in contest_form.told(context, three)


def test_the_form_tells_the_lines_that_are_wrong(context: Context, tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "one"}, "{nothing", {"prompt": "<b>"}, {"turns": []})
    told = contest_form.told(context, raw(context, files=[str(path)]))
    assert 'role="alert"' in told
    assert "line 2:" in told
    assert "line 4:" in told
    assert "line 3" not in told


@pytest.mark.parametrize("named", ["pic.png", "images/pic.png"])
def test_pictures_are_found_though_each_file_is_uploaded_by_itself(
    context: Context, tmp_path: Path, named: str
) -> None:
    path = write(tmp_path / "a", {"question_id": 1, "image": named, "text": "what?", "category": "conv"})
    (tmp_path / "b").mkdir()
    picture = tmp_path / "b" / "pic.png"
    picture.write_bytes(png())
    both = raw(context, files=[str(picture), str(path)])
    assert "1 prompt, 1 picture: 2 answers to draw." in contest_form.told(context, both)
    alone = contest_form.told(context, raw(context, files=[str(path)]))
    assert "line 1:" in alone
    assert "pic.png" in alone
    assert "/" not in alone.replace("images/pic.png", "").replace("</p>", "")  # no folder of this machine's


@pytest.mark.parametrize("name", ["/etc/hostname", "../b/pic.png"])
def test_a_list_reads_nothing_but_what_came_with_it(context: Context, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a", {"image": name, "text": "what?"})
    assert "line 1:" in contest_form.told(context, raw(context, files=[str(path)]))


def test_files_that_make_no_list_are_refused(context: Context, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", {"prompt": "x"}), write(tmp_path / "b", {"prompt": "y"}, name="b.txt")
    twice = [write(tmp_path / part, {"prompt": "x"}, name="p.png") for part in "cd"]
    for files, words in (
        ([], "choose a file"),
        ([first, second], "give one list"),
        (twice, "give one list"),
        ([first, *twice], "two files are called"),
        ([tmp_path / "gone.txt"], "not here any more"),
    ):
        assert words in contest_form.told(context, raw(context, files=[str(file) for file in files]))


def test_samples_are_counted_as_the_selection_says(world: World, context: Context) -> None:
    for number in range(5):
        world.sample(number, source="easy-vqa" if number < 3 else "own")
    chosen = raw(context, source=contest_form.SAMPLES, **{"samples.source": "own"})
    assert "2 prompts: 4 answers to draw." in contest_form.told(context, chosen)
    limited = raw(context, source=contest_form.SAMPLES, limit="1")
    assert "1 prompt: 2 answers to draw." in contest_form.told(context, limited)
    none = raw(context, source=contest_form.SAMPLES, **{"samples.source": "gone"})
    assert "no sample that fits" in contest_form.told(context, none)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"second": "base"}, "twice"),
        ({"second": ""}, "2 or 3 speakers"),
        ({"temperature": 9}, "temperature"),
        ({"limit": "many"}, "limit"),
        ({"name": "x" * 200}, "name"),
    ],
)
def test_what_cannot_be_is_told_by_its_field(
    context: Context, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    path = write(tmp_path, {"prompt": "one"})
    told = contest_form.told(context, raw(context, files=[str(path)], **changed))
    assert 'role="alert"' in told
    assert words in told


@pytest.mark.usefixtures("no_supervisor")
def test_start_submits_the_job_and_opens_its_contest(world: World, context: Context, tmp_path: Path) -> None:
    for number in range(3):
        world.sample(number)
    starting = handlers(context)["starting"]
    fields = raw(context, source=contest_form.SAMPLES, second="", limit="2")
    refused = by_id(starting(request(), *fields))
    assert "2 or 3 speakers" in refused["contest-plan"]
    assert list_jobs(world.db) == []
    second = str(trained(world).id)
    fields = raw(context, source=contest_form.SAMPLES, second=second, limit="2", name=" mine ")
    updates = starting(request(), *fields)
    assert "contest-plan" not in by_id(updates) or not by_id(updates)["contest-plan"]
    job = list_jobs(world.db)[0]
    made = contest_of_job(world.db, job.id, USER)
    assert made is not None
    assert (made.name, made.total, made.user) == ("mine", 2, USER)
    assert Place(made.id) in updates.values()
    assert f'href="/jobs?job={job.id}"' in by_id(updates)["contest-head"]
    assert get_job(world.db, job.id).config["columns"] == ["base", second]


def test_the_form_offers_adapters_and_outside_models(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = str(trained(world).id)
    monkeypatch.setattr("workbench.contest_form.outside_choices", lambda settings: [("llava (lab)", "llava@lab")])
    updates = by_id(handlers(context)["opening"](request()))
    second = updates["contest-speaker-2"]
    assert [value for _, value in second["choices"]] == ["base", adapter, "llava@lab"]
    assert second["value"] == adapter
    assert updates["contest-speaker-3"]["choices"][0] == ("nobody", "")
    assert updates["contest-speaker-3"]["value"] == ""
