"""The download job against a hub on loopback: whole, checked, and taken up where it broke off."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import tiny
from hub_server import FIRST, SECOND, FakeHub
from hubs import FILES, NAME, SECRET, WEIGHTS, download_run, ended, held
from jobs import download, hub
from jobs.causes import Cause, cause_of
from jobs.configs import DownloadConfig
from jobs.download import bytes_missing, check_room, wanted_files
from jobs.hub import RemoteFile, cached_commit, lacking_weights
from jobs.runs import RunFolder
from jobs.worker import work
from storage.errors import UserError

pytestmark = pytest.mark.slow  # as a whole: see the marker in pyproject.toml


def test_a_model_arrives_whole(tmp_path: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    fake_hub.token = SECRET
    run = download_run(tmp_path / "run", revision=FIRST)
    assert work(run.path) == 0, ended(run)
    assert held() == FILES, "neither pickles nor the same weights in other forms"
    progress = tiny.events(run, "progress")
    total = round(sum(map(len, FILES.values())) / 1e6, 1)
    assert (progress[0]["done"], progress[-1]["done"], progress[-1]["total"]) == (0, total, total)
    assert {event["unit"] for event in progress} == {"MB"}
    assert len(progress) > 3
    assert cached_commit(NAME) == cached_commit(NAME, FIRST) == FIRST
    assert (hub.store_of(NAME) / "refs" / "main").read_text() == FIRST, "for who asks offline"
    assert not list(hub.store_of(NAME).rglob("*.incomplete"))
    for file in run.path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()


def test_what_is_here_is_not_fetched_again(tmp_path: Path, fake_hub: FakeHub) -> None:
    assert work(download_run(tmp_path / "one").path) == 0
    fake_hub.requests.clear()
    fake_hub.add(NAME, FILES | {"config.json": b'{"model_type": "llava", "new": 1}'}, SECOND)
    run = download_run(tmp_path / "two")
    assert work(run.path) == 0
    assert [path for method, path, _ in fake_hub.requests if method == "GET" and "/resolve/" in path] == [
        f"{fake_hub.url.removeprefix('http://')}/{NAME}/resolve/{SECOND}/config.json"
    ]
    assert cached_commit(NAME) == SECOND
    assert held(SECOND)["model-00001-of-00002.safetensors"] == WEIGHTS


def test_large_files_lie_elsewhere_and_the_token_stays_here(
    tmp_path: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    fake_hub.token, fake_hub.redirect = SECRET, True
    run = download_run(tmp_path / "run")
    assert work(run.path) == 0, ended(run)
    assert held() == FILES
    there = fake_hub.asked("/bytes/")
    assert len(there) == 2
    assert SECRET not in json.dumps(there)
    assert all(headers["Authorization"] == f"Bearer {SECRET}" for headers in fake_hub.asked("/resolve/"))


def test_a_killed_download_goes_on_in_mid_file(
    tmp_path: Path, fake_hub: FakeHub, wait_for: Callable[..., None]
) -> None:
    run = download_run(tmp_path / "run")
    fake_hub.hold = 2_500_000
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": fake_hub.url, "HF_HUB_DISABLE_XET": "1"}
    worker = subprocess.Popen(
        [sys.executable, "-m", "jobs.worker", str(run.path)],
        cwd=Path(__file__).parent.parent,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    blobs = hub.store_of(NAME) / "blobs"
    wait_for(lambda: sum(file.stat().st_size for file in blobs.glob("*.incomplete")) >= 4_000_000, "some MB came")
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    parts = [size for file in blobs.glob("*.incomplete") if (size := file.stat().st_size) > 1000]  # of weights
    assert parts
    fake_hub.hold = None
    fake_hub.go_on.set()
    fake_hub.requests.clear()
    # main has moved on meanwhile: the job goes on with the commit that it began with.
    fake_hub.add(NAME, FILES, SECOND)
    assert work(run.path) == 0, ended(run)
    assert held() == FILES
    ranges = sorted(headers["Range"] for headers in fake_hub.asked(".safetensors") if "Range" in headers)
    assert ranges == sorted(f"bytes={size}-" for size in parts)
    progress = [event for event in tiny.events(run) if event["kind"] in ("started", "progress")]
    again = progress[max(place for place, event in enumerate(progress) if event["kind"] == "started") + 1]
    assert again["done"] >= 4.0, "what was there counts"
    assert "MB were there before" in tiny.events(run, "note")[-1]["text"]


def test_a_line_that_breaks_is_taken_up_again(tmp_path: Path, fake_hub: FakeHub) -> None:
    fake_hub.cut = 1_100_000
    run = download_run(tmp_path / "run")
    assert work(run.path) == 0, ended(run)
    assert held() == FILES
    assert len(fake_hub.asked(".safetensors")) >= 6


def test_a_server_that_never_ends_fills_no_disk(tmp_path: Path, fake_hub: FakeHub) -> None:
    fake_hub.endless = True
    run = download_run(tmp_path / "run")
    assert work(run.path) == 0, ended(run)
    assert fake_hub.hung_up.wait(10), "what is too much is not read"
    assert held() == FILES


def test_a_server_without_ranges(tmp_path: Path, fake_hub: FakeHub) -> None:
    blobs = hub.store_of(NAME) / "blobs"
    blobs.mkdir(parents=True)
    listed = {file.name: file for file in hub.ask(NAME).files}
    blob = listed["model-00001-of-00002.safetensors"].blob
    (blobs / f"{blob}.plumb.incomplete").write_bytes(b"x" * 1_000_000)
    fake_hub.ranges = False
    run = download_run(tmp_path / "run")
    assert work(run.path) == 0, ended(run)
    assert held() == FILES


@pytest.mark.parametrize("left", [b"x" * 1_000_000, b"x" * len(WEIGHTS), b"x" * (len(WEIGHTS) + 5)])
def test_what_a_crash_has_torn_is_fetched_anew(tmp_path: Path, fake_hub: FakeHub, left: bytes) -> None:
    """A machine that lost its power may leave a file of the right length and other bytes."""
    listed = {file.name: file for file in hub.ask(NAME).files}
    blobs = hub.store_of(NAME) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{listed['model-00001-of-00002.safetensors'].blob}.plumb.incomplete").write_bytes(left)
    run = download_run(tmp_path / "run")
    assert work(run.path) == 0, ended(run)
    assert held() == FILES
    assert tiny.events(run, "progress")[-1]["done"] == tiny.events(run, "progress")[-1]["total"]


def test_a_file_cut_off_in_the_cache_is_fetched_anew(tmp_path: Path, fake_hub: FakeHub) -> None:
    assert work(download_run(tmp_path / "one").path) == 0
    weights = hub.store_of(NAME) / "snapshots" / FIRST / "model-00001-of-00002.safetensors"
    os.truncate(weights.resolve(), 1000)
    (weights.parent / "model-00002-of-00002.safetensors").resolve().unlink()
    assert lacking_weights(weights.parent) == ["model-00002-of-00002.safetensors"]
    assert bytes_missing(NAME, FIRST) == len(WEIGHTS)
    assert work(download_run(tmp_path / "two").path) == 0
    assert held() == FILES


def test_bytes_that_are_not_the_hubs_never_get_a_name(tmp_path: Path, fake_hub: FakeHub) -> None:
    fake_hub.damage.add("model-00002-of-00002.safetensors")
    run = download_run(tmp_path / "run")
    assert work(run.path) == 1
    assert "model-00002-of-00002.safetensors of 'ada/colours' came damaged twice" in ended(run)["reason"]
    assert "model-00002-of-00002.safetensors" not in held()
    fake_hub.damage.clear()
    assert work(run.path) == 0
    assert held() == FILES


def refused(tmp_path: Path) -> tuple[str, str]:
    """(the reason, the cause) of a download that fails."""
    run = download_run(tmp_path / "run", revision=FIRST)
    assert work(run.path) == 1
    return ended(run)["reason"], ended(run)["cause"]


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "GatedRepo", r"'ada/colours' is gated \(403\).*agree to terms.*HF_TOKEN"),
        (401, "GatedRepo", r"'ada/colours' is gated \(401\)"),
        (401, "RepoNotFound", r"has no model 'ada/colours', or hides it \(401\)"),
        (404, "RepoNotFound", r"or hides it \(404\)"),
        (404, "RevisionNotFound", r"revision = 'a{40}'.*has no such commit"),
        (403, "", r"or hides it \(403\)"),
    ],
)
def test_refusals_have_a_remedy(tmp_path: Path, fake_hub: FakeHub, status: int, code: str, words: str) -> None:
    fake_hub.refuse["model-00001"] = (status, code)
    reason, cause = refused(tmp_path)
    assert cause == "setting"
    assert re.search(words, reason), reason


def test_a_token_that_is_refused(tmp_path: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    fake_hub.token = SECRET
    reason, cause = refused(tmp_path)
    assert "refuses 'ada/colours' to the token in HF_TOKEN (403)" in reason
    assert ("hf_another" in reason, cause) == (False, "setting")


@pytest.mark.parametrize(("status", "words"), [(503, "answered 503"), (429, "asks for patience"), (500, "500")])
def test_a_busy_hub_is_the_networks_fault(tmp_path: Path, fake_hub: FakeHub, status: int, words: str) -> None:
    fake_hub.refuse["model-00002"] = (status, "")
    reason, cause = refused(tmp_path)
    assert words in reason
    assert cause == "network"
    assert len(fake_hub.asked("model-00002")) == download.TRIES + 1
    assert "model-00002-of-00002.safetensors" not in held()


def test_a_hub_that_is_busy_for_a_while(tmp_path: Path, fake_hub: FakeHub) -> None:
    fake_hub.refuse["model-00002"], fake_hub.times["model-00002"] = (503, ""), 3
    run = download_run(tmp_path / "run")
    assert work(run.path) == 0, ended(run)
    assert held() == FILES


@pytest.mark.usefixtures("no_network")
def test_no_network_is_the_networks_fault(tmp_path: Path) -> None:
    reason, cause = refused(tmp_path)
    assert "The hub cannot be reached about 'ada/colours'" in reason
    assert cause == "network"


def test_a_stop_in_mid_file_keeps_what_came(tmp_path: Path, fake_hub: FakeHub) -> None:
    run = download_run(tmp_path / "run")
    fake_hub.hold = 1_500_000

    def ask() -> None:
        assert fake_hub.held.wait(30)
        run.ask_to_stop()
        fake_hub.go_on.set()

    asking = threading.Thread(target=ask)
    asking.start()
    assert work(run.path) == 0
    asking.join()
    assert ended(run)["status"] == "stopped"
    left = list((hub.store_of(NAME) / "blobs").glob("*.incomplete"))
    assert left
    assert all(file.stat().st_size > 0 for file in left)
    fake_hub.hold = None
    run.ask_nothing()
    assert work(run.path) == 0
    assert held() == FILES


def test_two_downloads_of_one_model(tmp_path: Path, fake_hub: FakeHub) -> None:
    """They share each file: none is fetched twice."""
    from jobs.reporter import Reporter

    runs = [download_run(tmp_path / str(number)) for number in range(2)]
    failed: list[BaseException] = []

    def fetch(run: RunFolder) -> None:
        try:
            with Reporter(run) as reporter:
                download.download(run, run.job(), DownloadConfig(model=NAME), reporter)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=fetch, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []
    assert held() == FILES
    assert len(fake_hub.asked("-of-00002.safetensors")) == 2
    for run in runs:
        last = tiny.events(run, "progress")[-1]
        assert last["done"] == last["total"]


def test_a_disk_that_is_too_small(tmp_path: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.download.shutil.disk_usage", lambda path: SimpleNamespace(free=201_000_000))
    reason, cause = refused(tmp_path)
    assert "takes 0.01 GB, and 0.20 GB are free where the hub's cache lies" in reason
    assert "HF_HOME" in reason
    assert cause == "setting"
    assert fake_hub.asked("/resolve/") == []
    check_room(tmp_path / "not" / "there", 0)


def test_an_index_that_names_its_files_otherwise(tmp_path: Path, fake_hub: FakeHub) -> None:
    index = json.dumps({"weight_map": {"a": "first.safetensors", "b": "second.safetensors"}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, "first.safetensors": WEIGHTS}
    fake_hub.add(NAME, files | {"second.safetensors": b"abc"}, SECOND)
    run = download_run(tmp_path / "one")
    assert work(run.path) == 0, ended(run)
    assert held(SECOND).keys() == files.keys() | {"second.safetensors"}
    fake_hub.add(NAME, files, "c" * 40)
    run = download_run(tmp_path / "two", revision="c" * 40)
    assert work(run.path) == 1
    assert "lacks second.safetensors, which its own index names" in ended(run)["reason"]


def test_only_what_transformers_reads() -> None:
    def wanted(*names: str) -> list[str]:
        return [file.name for file in wanted_files([RemoteFile(name, 1, "") for name in names], NAME)]

    assert wanted("model.safetensors", "model-00001-of-00002.safetensors", "config.json") == [
        "config.json",
        "model.safetensors",
    ]
    assert wanted("model.safetensors", "additional_chat_templates/tools.jinja", "x/y.json", "qwen.tiktoken") == [
        "additional_chat_templates/tools.jinja",
        "qwen.tiktoken",
        "model.safetensors",
    ]
    with pytest.raises(UserError, match="has its weights as pickles alone"):
        wanted("config.json", "pytorch_model.bin")
    with pytest.raises(UserError, match="has no weights"):
        wanted("config.json", "README.md")


def test_errors_of_other_things_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), hub.clear_errors(NAME, ""):
        raise ZeroDivisionError
    with pytest.raises(OSError, match="No space") as caught, hub.clear_errors(NAME, ""):
        raise OSError(28, "No space left on device")
    assert cause_of(caught.value) is Cause.DISK
    words = r"cache cannot be written \(Read-only file system: /x\).*HF_HOME"
    with pytest.raises(UserError, match=words), hub.clear_errors(NAME, ""):
        raise OSError(30, "Read-only file system", "/x")


def test_the_worker_of_a_download_loads_no_torch() -> None:
    code = (
        "import sys, jobs.worker, jobs.download, huggingface_hub.file_download, huggingface_hub.hf_api;"
        "print(sorted({'torch', 'transformers', 'peft', 'trl', 'accelerate'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
