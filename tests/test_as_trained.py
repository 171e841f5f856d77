"""Jobs that speak with an adapter, or train it further, ask it as its training did."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chat_server import add_serve_job
from factories import USER, World
from jobs import queue
from jobs.as_trained import asked_as
from jobs.freezing import freeze
from jobs.merged import Merged
from jobs.runs import RunFolder
from jobs.steerlm import SENTENCE
from storage.adapters import add_adapter, get_adapter, list_adapters
from storage.errors import NotFound, UserError
from test_freezing import by_rule, scored
from workbench.chat_client import find_process, start_process
from workbench.context import Context


def adapter(world: World, method: str = "dpo", **settings: Any) -> int:
    """One whose training had these settings."""
    job = world.job(method, **settings)
    sha256 = f"{job.id:064x}"
    folder = world.folder.adapters / sha256
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    add_adapter(world.db, job, "before", sha256, 1, "demo", method)
    return max(one.id for one in list_adapters(world.db))


def submitted(world: World, kind: str, **values: Any) -> dict[str, Any]:
    return queue.submit(world.db, world.settings, kind, values, USER).config


SPOKEN = {"image_fit": "processor", "system_prompt": "Be brief."}


@pytest.mark.parametrize("kind", ["generate", "serve", "merge"])
def test_auto_is_what_the_adapter_was_trained_with(world: World, no_supervisor: None, kind: str) -> None:
    world.sample()
    plain, own = adapter(world), adapter(world, **SPOKEN)

    def config(number: int, **more: Any) -> dict[str, Any]:
        named = {"adapters": [number]} if kind == "serve" else {"adapter": number}
        found = submitted(world, kind, **named, **more)
        return {name: found[name] for name in SPOKEN}

    assert config(own) == SPOKEN
    assert config(own, system_prompt="") == {**SPOKEN, "system_prompt": ""}, "what is said counts"
    assert config(plain) == dict.fromkeys(SPOKEN, "auto")


def test_the_base_alone_is_asked_as_ever(world: World, no_supervisor: None) -> None:
    world.sample()
    adapter(world, **SPOKEN)
    assert submitted(world, "generate")["system_prompt"] == "auto"


def test_adapters_that_were_trained_otherwise_share_no_process(world: World, no_supervisor: None) -> None:
    one, other = adapter(world), adapter(world, system_prompt="Be brief.")
    with pytest.raises(UserError, match=rf"system_prompt is auto, and adapter {one} .*'auto'.*adapter {other}"):
        submitted(world, "serve", adapters=[one, other])
    assert submitted(world, "serve", adapters=[one, other], system_prompt="")["adapters"] == [one, other]
    with pytest.raises(NotFound):
        submitted(world, "serve", adapters=[99])


def test_the_chats_process_holds_those_that_are_asked_alike(world: World, no_supervisor: None) -> None:
    context = Context(world.settings)
    plain, own, twin = adapter(world), adapter(world, **SPOKEN), adapter(world, **SPOKEN)
    job = start_process(context, world.db, USER, "demo", [own])
    assert (job.config["adapters"], job.config["system_prompt"]) == ([own, twin], "Be brief.")
    assert find_process(world.db, "demo", [twin]) is not None
    assert find_process(world.db, "demo", [plain]) is None
    assert find_process(world.db, "demo", []) is None, "the base alone has no such system prompt"
    other = start_process(context, world.db, USER, "demo", [])
    assert (other.config["adapters"], other.config["system_prompt"]) == ([plain], "auto")
    found = find_process(world.db, "demo", [])
    assert found is not None
    assert found.id == other.id
    add_serve_job(context)  # by hand, whatever its settings
    assert find_process(world.db, "demo", []) is not None


def shapes(world: World) -> None:
    for number in range(1, 21):
        scored(world, number)
    by_rule(world)
    freeze(world.db, USER, "shapes", heldout_percent=20)


@pytest.mark.parametrize("kind", ["dpo", "rejection", "sft", "steerlm"])
def test_what_goes_on_from_steerlm_is_asked_as_steerlm(world: World, no_supervisor: None, kind: str) -> None:
    """Its reference was trained to be told what to answer like; so are the rows, the pairs, and whoever asks."""
    shapes(world)
    first = adapter(world, "steerlm", **SPOKEN)
    job = queue.submit(world.db, world.settings, kind, {"dataset": "shapes", "start_adapter": first}, USER)
    assert {name: job.config[name] for name in SPOKEN} == SPOKEN
    rows = list(RunFolder(world.folder.run(job.id)).rows())
    assert {row["split"] for row in rows} == {"train", "heldout", "report"}
    assert all(SENTENCE in json.dumps(row["messages"]) for row in rows)
    add_adapter(world.db, job, "next", "f" * 64, 1, "demo", kind)
    (world.folder.adapters / ("f" * 64)).mkdir()
    number = max(one.id for one in list_adapters(world.db))
    assert asked_as(world.db, get_adapter(world.db, number)) == "steerlm"
    asked = queue.submit(world.db, world.settings, "generate", {"adapter": number}, USER)
    run = RunFolder(world.folder.run(asked.id))
    assert all(SENTENCE in json.dumps(row["messages"]) for row in run.rows())
    told = json.loads((run.path / "data" / "adapters.json").read_text(encoding="utf-8"))
    assert told[str(number)]["method"] == "steerlm", "the chat goes by it"


def test_the_string_can_be_left_out_and_older_adapters_were_trained_without(
    world: World, no_supervisor: None
) -> None:
    shapes(world)
    first = adapter(world, "steerlm")
    values = {"dataset": "shapes", "start_adapter": first, "steer": "off"}
    job = queue.submit(world.db, world.settings, "dpo", values, USER)
    assert not any(SENTENCE in json.dumps(row) for row in RunFolder(world.folder.run(job.id)).rows())
    # Of a version that knew no such setting, whatever it went on from.
    old = adapter(world, "dpo", start_adapter=first)
    assert asked_as(world.db, get_adapter(world.db, old)) == "dpo"
    plain = queue.submit(world.db, world.settings, "dpo", {"dataset": "shapes"}, USER)
    assert plain.config["steer"] == "off"


def test_weights_merged_from_steerlm_are_trained_further_with_it(world: World, no_supervisor: None) -> None:
    shapes(world)
    folder = world.folder.models / "merged" / "whole"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    made = Merged("demo", 3, "x", "ab", "float32", 1, "2026-11-23", "steerlm")
    (folder / "plumb.json").write_text(made.text())
    values = {"dataset": "shapes", "model": str(folder)}
    job = queue.submit(world.db, world.settings, "dpo", values, USER)
    assert job.config["steer"] == "on"
    assert all(SENTENCE in json.dumps(row["messages"]) for row in RunFolder(world.folder.run(job.id)).rows())
