"""The push job against a small hub on loopback, as a process of its own: huggingface_hub is the real one."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import tiny
from jobs.configs import PushConfig, TrainConfig, parse_config
from jobs.merged import Merged, merged_root
from jobs.push import base_warning, check_push, check_repository, explained, need_token, scrub, uploaded_files
from jobs.runs import RunFolder
from storage.errors import NotFound, UserError

SECRET = "hf_secretOfTheTests123"
REPOSITORY = "ada/colours"


class Hub:
    """Repositories in memory, spoken to as huggingface_hub does: create, preupload, LFS, commit.

    `refuse` gives a status (and a text) for requests whose path has the key in it.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        self.refuse: dict[str, tuple[int, str]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def sent(self, part: str) -> int:
        return sum(part in path for _, path in self.requests)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        where = path.split("?")[0]
        if where == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.repositories:
                return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            assert asked.get("type", "model") in ("model", "dataset")
            self.repositories[name] = {"private": asked.get("visibility") == "private", "files": {}, "commits": 0}
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if where == "/api/validate-yaml":
            front = json.loads(body)["content"].split("\n---\n")[0]
            bad = "base_model: demo" in front or "base_model: /" in front
            return (400, {"errors": [{"message": "base_model is not valid"}]}) if bad else (200, {"errors": []})
        if where.startswith("/lfs/"):
            self.stored[where.removeprefix("/lfs/")] = body
            return 200, {}
        name = REPOSITORY
        repository = self.repositories.get(name)
        if repository is None:
            return 404, {"error": "Repository not found"}
        if "/preupload/" in where:
            return 200, {"files": [self._mode(repository, file) for file in json.loads(body)["files"]]}
        if where.endswith(".git/info/lfs/objects/batch"):
            return 200, {
                "transfer": "basic",
                "objects": [self._object(one) for one in json.loads(body)["objects"]],
            }
        if "/commit/" in where:
            return self._commit(repository, body)
        if where.startswith((f"/api/models/{name}", f"/api/datasets/{name}")):
            return 200, {"id": name, "private": repository["private"], "sha": "c" * 40, "siblings": []}
        return 500, {"error": f"the test's hub does not know {method} {where}"}

    def _mode(self, repository: dict[str, Any], file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(".safetensors")
        there = repository["files"].get(file["path"])
        found = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        return {**found, "oid": oid_of(there, large)} if there is not None else found

    def _object(self, one: dict[str, Any]) -> dict[str, Any]:
        if one["oid"] in self.stored:
            return {"oid": one["oid"], "size": one["size"]}
        upload = {"href": f"{self.url}/lfs/{one['oid']}", "header": {}}
        return {"oid": one["oid"], "size": one["size"], "actions": {"upload": upload}}

    def _commit(self, repository: dict[str, Any], body: bytes) -> tuple[int, Any]:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repository["files"][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository["files"][value["path"]] = self.stored[value["oid"]]
        repository["commits"] += 1
        return 200, {"commitUrl": f"{self.url}/{REPOSITORY}/commit/{'c' * 40}", "commitOid": "c" * 40}

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.requests.append((self.command, self.path))
                if token := self.headers.get("Authorization"):
                    hub.tokens.add(token)
                refused = next((why for part, why in hub.refuse.items() if part in self.path), None)
                status, found = hub.answer(self.command, self.path, body) if refused is None else refused
                data = json.dumps(found if refused is None else {"error": found}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = _serve

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def oid_of(content: bytes, large: bool) -> str:
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


def adapter_folder(folder: Path, base: str = "llava-hf/llava-1.5-7b-hf") -> Path:
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 300)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": 2}))
    (folder / "README.md").write_text(f"---\nlibrary_name: peft\nbase_model: {base}\n---\n\n# colours\n")
    (folder / "optimizer.bin").write_bytes(b"a pickle")
    return folder


def push_run(folder: Path, base: str = "llava-hf/llava-1.5-7b-hf", **changes: Any) -> RunFolder:
    adapter = adapter_folder(folder.with_name(f"{folder.name}-adapter"), base)
    config = {"adapter": 5, "repository": REPOSITORY, **changes}
    run = tiny.frozen_run(folder, "push", {"model": ""} | config, adapters={5: adapter})
    job = json.loads((folder / "job.json").read_text())
    job["config"].pop("model")
    (folder / "job.json").write_text(json.dumps({**job, "device": "network"}))
    return run


def perform(run: RunFolder, hub: Hub | None, token: str = SECRET, **more: str) -> int:
    """The job as a worker's own process; no file of the run folder, and nothing it prints, holds the token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(run.path.parent / "home"), **more}
    environment |= {"HF_ENDPOINT": hub.url} if hub else {}
    environment |= {"HF_TOKEN": token} if token else {}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.worker", str(run.path)],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        timeout=60,
    )
    run.log.write_bytes(done.stdout + done.stderr)
    for file in run.path.rglob("*"):
        if token and file.is_file():
            assert token.encode() not in file.read_bytes(), file
    return done.returncode


def ended(run: RunFolder) -> dict[str, Any]:
    return tiny.events(run, "end")[-1]


def notes(run: RunFolder) -> str:
    return " ".join(event["text"] for event in tiny.events(run, "note"))


def test_an_adapter_arrives_whole(tmp_path: Path, hub: Hub) -> None:
    run = push_run(tmp_path / "run")
    assert perform(run, hub) == 0, run.log.read_text()
    made = hub.repositories[REPOSITORY]
    source = tmp_path / "run-adapter"
    assert made["private"] is True
    assert sorted(made["files"]) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert all(content == (source / name).read_bytes() for name, content in made["files"].items())
    assert made["commits"] == 1
    assert hub.tokens == {f"Bearer {SECRET}"}
    assert [event["done"] for event in tiny.events(run, "progress")] == [0, 1, 2, 3]
    assert f"{REPOSITORY} holds 3 files" in notes(run)
    assert "cannot load" not in notes(run)


@pytest.mark.slow
def test_a_second_push_sends_nothing_again(tmp_path: Path, hub: Hub) -> None:
    run = push_run(tmp_path / "run")
    assert perform(run, hub) == 0, run.log.read_text()
    assert perform(run, hub) == 0, run.log.read_text()
    assert sum(method == "PUT" for method, _ in hub.requests) == 1
    assert hub.repositories[REPOSITORY]["commits"] == 1, "no empty commit"


def test_it_goes_on_where_it_broke_off(tmp_path: Path, hub: Hub) -> None:
    run = push_run(tmp_path / "run")
    hub.refuse["/commit/"] = (403, "no")
    assert perform(run, hub) == 1
    assert "may not write to 'ada/colours' (403)" in ended(run)["reason"]
    hub.refuse.clear()
    assert perform(run, hub) == 0, run.log.read_text()
    assert sum(method == "PUT" for method, _ in hub.requests) == 1
    assert hub.repositories[REPOSITORY]["commits"] == 1


def test_merged_weights(tmp_path: Path, hub: Hub) -> None:
    run = push_run(tmp_path / "run", adapter=None, merged="whole", private=False)
    folder = merged_root(tmp_path / "models") / "whole"
    folder.mkdir(parents=True)
    made = Merged("demo", 1, "colours", "a" * 64, "float32", 2, "2026-11-22T20:00:00+00:00")
    (folder / "plumb.json").write_text(made.text())
    (folder / "model.safetensors").write_bytes(b"all weights")
    (folder / "README.md").write_text("---\nbase_model: demo\ntags:\n- plumb\n---\n\n# whole, of demo\n")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert perform(run, hub) == 0, run.log.read_text()
    made_there = hub.repositories[REPOSITORY]
    assert made_there["private"] is False
    assert sorted(made_there["files"]) == ["README.md", "chat_template.jinja", "model.safetensors", "plumb.json"]
    assert made_there["files"]["README.md"].decode() == "---\ntags:\n- plumb\n---\n\n# whole, of demo\n"
    assert "cannot load" not in notes(run), "merged weights need no base"


@pytest.mark.parametrize("base", ["demo", "/somewhere/llava"])
def test_a_base_that_others_lack_is_told(tmp_path: Path, hub: Hub, base: str) -> None:
    run = push_run(tmp_path / "run", base)
    assert perform(run, hub) == 0, run.log.read_text()
    assert "Others cannot load this adapter" in notes(run)
    assert b"base_model" not in hub.repositories[REPOSITORY]["files"]["README.md"]


def test_no_path_and_no_person_leaves_this_machine(tmp_path: Path, hub: Hub) -> None:
    """The card as a training writes it: everything that it tells is there but for whose machine and who."""
    from jobs.gpu.cards import training_card

    base = str(tmp_path / "models" / "own-llava")
    values = {"dataset": "shapes", "model": base, "accelerate_config": str(tmp_path / "two.yaml"), "processes": 2}
    training = tiny.frozen_run(tmp_path / "training", "dpo", values)
    job = training.job().model_copy(update={"user": "Mallory Jones"})
    raters = [
        {"kind": "person", "name": "Eve; Adams", "version": "", "mode": "pairs by hand", "pairs": 1200},
        {"kind": "judge", "name": "gemini", "version": "plumb-1", "mode": "together", "judgements": 40},
        {"kind": "person", "name": "bob", "version": "", "mode": "", "judgements": 3},
    ]
    dataset = {"name": "shapes", "hash": "ab", "rule": {}, "user": "Trudy", "created_at": "2026-11-23T02:00:00Z"}
    training.lineage.write_text(json.dumps({"dataset": dataset, "raters": raters}))
    config = job.parsed()
    assert isinstance(config, TrainConfig)
    run = push_run(tmp_path / "run", base)
    folder = run.path.with_name("run-adapter")
    card = training_card(training, job, config, "colours", {"loss": 0.5})
    assert base in card
    for adapter in (folder, *run.path.glob("data/adapters/*"), *run.path.rglob("adapter_config.json")):
        (adapter if adapter.is_dir() else adapter.parent).joinpath("README.md").write_text(card)
    assert perform(run, hub) == 0, run.log.read_text()
    files = hub.repositories[REPOSITORY]["files"]
    assert json.loads(files["adapter_config.json"]) == {"base_model_name_or_path": "own-llava", "r": 2}
    told = files["README.md"].decode()
    for private in (str(tmp_path), "Mallory", "Jones", "Trudy", "Eve", "Adams", "bob"):
        assert private in card, private
        assert private not in told, private
    assert f"| job | {job.job_id}, {job.created_at} |" in told
    assert "| frozen | 2026-11-23T02:00:00Z |" in told
    assert (
        "| raters | somebody (person, 1,200 pairs); gemini · plumb-1 · together (judge, 40 judgements); "
        "somebody (person, 3 judgements) |"
    ) in told
    assert '"accelerate_config": "two.yaml"' in told
    assert '"model": "own-llava"' in told
    assert len(told.splitlines()) == len(card.splitlines()) - 1, "base_model alone is gone"


def test_merged_weights_tell_no_path(tmp_path: Path, hub: Hub) -> None:
    run = push_run(tmp_path / "run", adapter=None, merged="whole", private=False)
    folder = merged_root(tmp_path / "models") / "whole"
    folder.mkdir(parents=True)
    base = str(tmp_path / "models" / "own-llava")
    made = Merged(base, 1, "colours", "a" * 64, "float32", 2, "2026-11-22T20:00:00+00:00")
    (folder / "plumb.json").write_text(made.text())
    (folder / "config.json").write_text(json.dumps({"_name_or_path": base, "model_type": "llava"}))
    (folder / "model.safetensors").write_bytes(b"all weights")
    (folder / "README.md").write_text(f"---\nbase_model: {base}\n---\n\n# whole, of `{base}`\n")
    assert perform(run, hub) == 0, run.log.read_text()
    files = hub.repositories[REPOSITORY]["files"]
    assert not any(str(tmp_path).encode() in content for content in files.values())
    assert json.loads(files["plumb.json"])["base_model"] == "own-llava"
    assert files["README.md"].decode().endswith("# whole, of `own-llava`\n")
    assert json.loads((folder / "plumb.json").read_text())["base_model"] == base, "here it stays"


def test_a_public_repository_gets_nothing_private(tmp_path: Path, hub: Hub) -> None:
    hub.repositories[REPOSITORY] = {"private": False, "files": {}, "commits": 0}
    run = push_run(tmp_path / "run")
    assert perform(run, hub) == 1
    assert "is public, and a private one was asked" in ended(run)["reason"]
    assert hub.repositories[REPOSITORY]["files"] == {}
    assert hub.sent("/preupload/") == 0


@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        ({"/api/repos/create": (401, f"bad token {SECRET}")}, "does not know the token (401)"),
        ({"/api/repos/create": (403, "not yours")}, "may not write to 'ada/colours' (403)"),
        ({"/preupload/": (404, "gone")}, "hides it from this token (404)"),
        ({"/api/repos/create": (418, f"a teapot for {SECRET}")}, "The hub answered 418"),
    ],
)
def test_refusals_are_told(tmp_path: Path, hub: Hub, refuse: dict[str, tuple[int, str]], words: str) -> None:
    hub.refuse.update(refuse)
    run = push_run(tmp_path / "run")
    assert perform(run, hub) == 1
    assert words in ended(run)["reason"]
    assert "HF_TOKEN" in ended(run)["reason"] or "401" not in words


def test_no_token_no_network_no_hub(tmp_path: Path, hub: Hub) -> None:
    run = push_run(tmp_path / "run")
    assert perform(run, hub, token="") == 1
    assert "Set HF_TOKEN" in ended(run)["reason"]
    assert hub.requests == []
    assert perform(run, hub, HF_HUB_OFFLINE="1") == 1
    assert "HF_HUB_OFFLINE is set" in ended(run)["reason"]
    hub.close()
    assert perform(run, hub) == 1
    assert "The hub cannot be reached" in ended(run)["reason"], ended(run)


def test_a_stop_between_two_files(tmp_path: Path, hub: Hub) -> None:
    run = push_run(tmp_path / "run")
    run.ask_to_stop()
    assert perform(run, hub) == 0
    assert ended(run)["status"] == "stopped"
    assert hub.repositories == {}


def test_what_is_checked_before_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config("push", {"adapter": 1, "repository": REPOSITORY})
    assert isinstance(config, PushConfig)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match="Set HF_TOKEN"):
        check_push(config, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "two\nlines")
    with pytest.raises(UserError, match="a character that no token has") as caught:
        need_token()
    assert "two" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    check_push(config, tmp_path)
    with pytest.raises(NotFound, match="no merged weights named 'whole'"):
        check_push(PushConfig(merged="whole", repository=REPOSITORY), tmp_path)


@pytest.mark.parametrize(
    "name", ["colours", "a/b/c", "/x", "a/", "a b/c", "a/b--c", "a/..", "a/x.git", "a/-b", "ä/b"]
)
def test_names_that_no_hub_takes(name: str) -> None:
    from huggingface_hub.utils._validators import validate_repo_id

    with pytest.raises(UserError, match="give owner/name"):
        check_repository(name)
    for good in ("ada/colours", "a_b/llava-1.5-dpo", "A/b"):
        validate_repo_id(check_repository(good))


def test_errors_are_told_without_the_token() -> None:
    told = str(explained(RuntimeError(f"refused for {SECRET}"), REPOSITORY, SECRET))
    assert told == "The upload failed: RuntimeError: refused for •••"
    odd = OSError(f"418 for {SECRET}")
    odd.response = type("Response", (), {"status_code": 418})()  # type: ignore[attr-defined]
    assert SECRET not in str(explained(odd, REPOSITORY, SECRET))
    assert "418 for •••" in str(explained(odd, REPOSITORY, SECRET))


def test_small_parts(tmp_path: Path) -> None:
    assert base_warning("") == base_warning("llava-hf/llava-1.5-7b-hf") == ""
    assert "llava" in base_warning("/somewhere/llava")
    assert scrub(f"a {SECRET} b", SECRET) == "a ••• b"
    folder = adapter_folder(tmp_path / "adapter")
    assert uploaded_files(folder)[0].name == "README.md"
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no \.safetensors"):
        uploaded_files(folder)
