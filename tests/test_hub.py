"""A hub's models: pinned to a commit when a job is submitted, and loaded at that commit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from factories import World
from hub_server import FIRST, SECOND, FakeHub
from hubs import FILES, INDEX, NAME, cached, ended
from jobs import hub, queue
from jobs.causes import Cause, cause_of
from jobs.configs import GenerateConfig, parse_config
from jobs.hub import Unreachable, pin
from jobs.runs import RunFolder
from jobs.worker import work
from storage.errors import PlumbError, UserError

# Pinning


@pytest.mark.usefixtures("fake_hub")
def test_what_is_on_no_hub_has_no_revision(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in ("demo", str(tmp_path)):
        assert pin(name) == ""
        with pytest.raises(UserError, match=r"revision = 'v2'.*is not a hub's model.*Leave it empty"):
            pin(name, "v2")


def test_the_cache_decides_before_the_hub(fake_hub: FakeHub) -> None:
    cached(SECOND, main=SECOND, v1=SECOND)
    assert pin(NAME) == pin(NAME, "main") == pin(NAME, "v1") == pin(NAME, SECOND) == SECOND
    assert fake_hub.requests == []
    assert pin(NAME, FIRST) == FIRST, "not in the cache: the hub knows it"
    assert pin(NAME, fresh=True) == FIRST, "a download fetches what is new"


def test_the_hub_tells_what_the_cache_lacks(fake_hub: FakeHub) -> None:
    fake_hub.add(NAME, FILES, SECOND, v2=SECOND)
    assert (pin(NAME), pin(NAME, "v2"), pin(NAME, SECOND)) == (FIRST, SECOND, SECOND)
    before = len(fake_hub.requests)
    assert (pin(NAME), pin(NAME, "v2")) == (FIRST, SECOND)
    assert len(fake_hub.requests) == before, "remembered"
    assert all("Authorization" not in headers for _, _, headers in fake_hub.requests)


def test_a_hub_that_says_no(fake_hub: FakeHub) -> None:
    with pytest.raises(UserError, match=r"has no model 'ada/nothing', or hides it \(401\).*set HF_TOKEN"):
        pin("ada/nothing")
    with pytest.raises(UserError, match=r"revision = 'v9'.*'ada/colours' has no such commit, branch or tag"):
        pin(NAME, "v9")
    with pytest.raises(UserError, match="has no such commit"):
        pin(NAME, "c" * 40)


@pytest.mark.usefixtures("no_network")
def test_a_machine_without_network_may_queue() -> None:
    assert (pin(NAME), pin(NAME, "v2"), pin(NAME, SECOND)) == ("", "v2", SECOND)
    with pytest.raises(Unreachable, match=r"cannot be reached about 'ada/colours'.*HF_ENDPOINT") as caught:
        hub.ask(NAME)
    assert cause_of(caught.value) is Cause.NETWORK
    cached(SECOND, v2=SECOND)
    assert (pin(NAME, "v2"), pin(NAME, fresh=True)) == (SECOND, SECOND), "the only one that is here"
    cached(FIRST)
    assert pin(NAME) == "", "two, of which neither is known as main"


def test_a_silent_hub_is_not_asked_at_each_submit(fake_hub: FakeHub) -> None:
    fake_hub.refuse["/api/"] = (503, "")
    assert pin(NAME) == ""
    asked = len(fake_hub.requests)
    assert (pin(NAME), pin("ada/other")) == ("", "")
    assert len(fake_hub.requests) == asked
    hub._answers.clear()
    fake_hub.refuse.clear()
    assert pin(NAME) == FIRST


@pytest.mark.parametrize("revision", ["../../etc", "a b", "/main", "main/", "x" * 201, "a\nb", "é"])
def test_revisions_that_cannot_be(revision: str) -> None:
    with pytest.raises(UserError, match=r"revision = .*: give a commit, a branch or a tag"):
        parse_config("generate", {"model": NAME, "revision": revision})
    with pytest.raises(UserError, match=r"revision = .*: give a commit, a branch or a tag"):
        parse_config("download", {"model": NAME, "revision": revision})


@pytest.mark.usefixtures("no_supervisor")
def test_a_submitted_job_holds_the_commit(world: World, fake_hub: FakeHub) -> None:
    world.sample()
    job = queue.submit(world.db, world.settings, "generate", {"model": NAME}, "ada")
    assert job.config["revision"] == FIRST
    config = RunFolder(world.folder.run(job.id)).job().parsed()
    assert isinstance(config, GenerateConfig)
    assert config.revision == FIRST
    job = queue.submit(world.db, world.settings, "download", {"model": NAME}, "ada")
    assert (job.slot_kind, job.config) == ("network", {"model": NAME, "revision": FIRST})


def test_an_adapter_brings_the_revision_of_its_base(tmp_path: Path, fake_hub: FakeHub) -> None:
    fake_hub.add(NAME, FILES, SECOND, other=SECOND)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"revision": SECOND}))
    config = GenerateConfig(model=NAME)
    found = [hub.pinned(config), hub.pinned(config, [tmp_path]), hub.pinned(config, [tmp_path / "gone"])]
    assert [one.revision for one in found] == [FIRST, SECOND, FIRST]  # type: ignore[attr-defined]
    given = hub.pinned(GenerateConfig(model=NAME, revision=FIRST), [tmp_path])
    assert given.revision == FIRST  # type: ignore[attr-defined]
    assert hub.pinned(GenerateConfig(), [tmp_path]).revision == ""  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_supervisor", "fake_hub")
def test_downloads_that_cannot_be(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def submit(model: str) -> None:
        queue.submit(world.db, world.settings, "download", {"model": model}, "ada")

    for name in ("demo", "/somewhere/else", "llava"):
        with pytest.raises(UserError, match=f"model = '{name}'.*give the name of a hub's model"):
            submit(name)
    monkeypatch.setenv("HF_TOKEN", "hf_two\nlines")
    with pytest.raises(UserError, match="HF_TOKEN holds a character that no token has"):
        submit(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: nothing can be downloaded"):
        submit(NAME)


# What jobs make of it


def test_a_preflight_tells_what_has_to_come(
    world: World, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from jobs import preflight
    from test_preflight import asked, dpo, frozen
    from workbench.preflight_views import needs

    frozen(world)
    values = asked(dpo()) | {"model": NAME}
    found = preflight.preflight(world.db, world.settings, "dpo", values)
    size = sum(map(len, FILES.values()))
    assert found.missing == preflight.Missing(NAME, FIRST, size)
    assert found.warnings == ()
    shown = needs(found)
    assert f'href="/jobs?kind=download&amp;model=ada%2Fcolours&amp;revision={FIRST}"' in shown
    assert "downloads ada/colours first (0.0061 GB)" in shown
    fake_hub.close()
    hub._answers.clear()
    found = preflight.preflight(world.db, world.settings, "dpo", values)
    assert "The hub doesn't answer, and 'ada/colours' isn't on this machine" in found.warnings[0]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = preflight.preflight(world.db, world.settings, "dpo", values)
    assert (
        "The job would fail: 'ada/colours' isn't on this machine, and HF_HUB_OFFLINE is set" in found.warnings[0]
    )
    assert found.missing == preflight.Missing(NAME, "", None)


def model_files() -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(tiny.tiny_llava().iterdir())}


def worker_of(run: RunFolder, fake_hub: FakeHub | None, cache: Path) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PLUMB_"))}
    environment |= {"HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"HF_ENDPOINT": fake_hub.url} if fake_hub else {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.worker", str(run.path)],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        timeout=200,
    )
    run.log.write_bytes(done.stdout + done.stderr)
    return done.returncode


@pytest.mark.slow
def test_a_worker_loads_the_revision_that_was_pinned(tmp_path: Path, fake_hub: FakeHub) -> None:
    """Two commits of one model: the older one answers, is told with the answers, and needs no network again."""
    from safetensors.torch import load, save

    from test_generate_job import generate_run

    older = model_files()
    weights = load(older["model.safetensors"])
    newer = {
        **older,
        "model.safetensors": save({name: value * 0.5 for name, value in weights.items()}, {"format": "pt"}),
    }
    fake_hub.add(NAME, older, FIRST)
    fake_hub.add(NAME, newer, SECOND)
    fake_hub.cut = 100_000
    home = generate_run(tmp_path / "home", model=str(tiny.tiny_llava()))
    pinned = generate_run(tmp_path / "pinned", model=NAME, revision=FIRST)
    newest = generate_run(tmp_path / "newest", model=NAME, revision=SECOND)
    assert work(home.path) == 0
    assert worker_of(pinned, fake_hub, tmp_path / "hub") == 0, ended(pinned)
    assert worker_of(newest, fake_hub, tmp_path / "hub") == 0, ended(newest)
    again = generate_run(tmp_path / "again", model=NAME, revision=FIRST)
    assert worker_of(again, None, tmp_path / "hub") == 0, ended(again)

    def told(run: RunFolder) -> list[str]:
        return [event["text"] for event in tiny.events(run, "candidate")]

    assert told(home) == told(pinned) == told(again) != told(newest)
    assert {event["settings"]["revision"] for event in tiny.events(pinned, "candidate")} == {FIRST}
    assert f"downloading {NAME}" in [event["text"] for event in tiny.events(pinned, "phase")]
    assert f"downloading {NAME}" not in [event["text"] for event in tiny.events(again, "phase")]


@pytest.mark.slow
def test_an_adapter_keeps_the_revision_of_its_base(tmp_path: Path, fake_hub: FakeHub) -> None:
    from test_dpo_job import FAST, dpo_run

    fake_hub.add(NAME, model_files(), FIRST)
    run = dpo_run(tmp_path / "run", {**FAST, "model": NAME, "revision": FIRST, "max_steps": 1, "evaluations": 0})
    assert worker_of(run, fake_hub, tmp_path / "hub") == 0, run.log.read_text()
    assert hub.adapter_revision(run.adapter) == FIRST
    assert f"revision `{FIRST}`" in (run.adapter / "README.md").read_text()


@pytest.mark.slow
def test_references_know_commits_apart(tmp_path: Path, fake_hub: FakeHub) -> None:
    """The cache's `main` is not what is loaded: a reference's key is made of the weights that were."""
    import torch

    from jobs.gpu.loading import Loaded
    from jobs.gpu.references import base_digest

    for commit, content in ((FIRST, b"older"), (SECOND, b"newer")):
        folder = cached(commit, main=SECOND)
        (folder / "model.safetensors").write_bytes(content)
    digests = {
        revision: base_digest(Loaded(NAME, None, None, torch.device("cpu"), revision=revision), tmp_path, tmp_path)
        for revision in (FIRST, SECOND, None)
    }
    assert digests[FIRST] != digests[SECOND] == digests[None]


# A base that is gone, or half gone


@pytest.mark.parametrize("what", ["folder", "config.json", "shard", "tokenizer", "processor"])
def test_a_base_model_deleted_meanwhile(tmp_path: Path, what: str) -> None:
    from test_generate_job import generate_run

    model = Path(shutil.copytree(tiny.tiny_llava(), tmp_path / "model"))
    run = generate_run(tmp_path / "run", model=str(model))
    words = {
        "folder": "is not there: the folder was deleted, moved or renamed",
        "config.json": "is a folder without config.json",
        "shard": "is not whole: model-00002-of-00002.safetensors of its weights' files are gone",
        "tokenizer": "tokenizer",
        "processor": "processor",
    }[what]
    match what:
        case "folder":
            shutil.rmtree(model)
        case "config.json":
            (model / "config.json").unlink()
        case "shard":
            (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
            (model / "model.safetensors.index.json").write_text(json.dumps(INDEX))
        case _:
            for file in model.glob(f"*{what}*"):
                file.unlink()
    assert work(run.path) == 1
    assert words in ended(run)["reason"], ended(run)["reason"]
    assert ended(run)["cause"] == "setting"


def test_plumb_errors_stay_as_they_are() -> None:
    with pytest.raises(PlumbError, match="as it was"), hub.clear_errors(NAME, ""):
        raise PlumbError("as it was")
