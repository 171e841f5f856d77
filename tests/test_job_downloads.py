"""Downloads of a run's log and folder: behind the door, streamed, and nothing but what is the run's own."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from factories import World, settings_for
from job_pages import advance
from jobs.runs import RunFolder
from storage import jobs as store
from storage.lifecycle import JobStatus
from storage.records import Job
from workbench import job_downloads
from workbench.context import Context
from workbench.door import Door
from workbench.job_downloads import read_range, zipped
from workbench.ui import build_api


@pytest.fixture
def client(context: Context) -> TestClient:
    return TestClient(build_api(context, Door(context.settings)), base_url="http://127.0.0.1")


@pytest.fixture
def job(world: World) -> Job:
    made = advance(world, world.job("dpo"), JobStatus.STARTING, JobStatus.RUNNING)
    run = RunFolder(world.folder.run(made.id))
    (run.path / "data" / "images").mkdir(parents=True)
    (run.path / "job.json").write_text('{"kind": "dpo"}')
    run.log.write_text("first\nsecond\n")
    (run.path / "data" / "images" / "a.png").write_bytes(os.urandom(3_000))
    return made


def unzipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_log_and_an_attempts_part_of_it(world: World, client: TestClient, job: Job) -> None:
    first = store.start_attempt(world.db, job.id)
    store.end_attempt(world.db, first.id, "failed", "", log_end=6)
    store.start_attempt(world.db, job.id, log_begin=6)
    whole = client.get(f"/api/jobs/{job.id}/log")
    assert whole.text == "first\nsecond\n"
    assert whole.headers["content-disposition"] == f'attachment; filename="job-{job.id}-log.txt"'
    assert whole.headers["content-type"].startswith("text/plain")
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert client.get(f"/api/jobs/{job.id}/log?attempt=1").text == "first\n"
    assert client.get(f"/api/jobs/{job.id}/log?attempt=2").text == "second\n"


def test_the_folder_comes_whole_and_under_its_jobs_name(world: World, client: TestClient, job: Job) -> None:
    answer = client.get(f"/api/jobs/{job.id}/folder.zip")
    assert answer.headers["content-type"] == "application/zip"
    path = world.folder.run(job.id)
    assert unzipped(answer.content) == {
        f"job-{job.id}/job.json": b'{"kind": "dpo"}',
        f"job-{job.id}/log.txt": b"first\nsecond\n",
        f"job-{job.id}/data/images/a.png": (path / "data" / "images" / "a.png").read_bytes(),
    }


@pytest.mark.parametrize("what", ["log", "folder.zip", "log?attempt=1"])
def test_what_is_not_there_is_told(world: World, client: TestClient, what: str) -> None:
    world.job()
    for job_id, status in ((77, 404), (1, 404), (0, 422), (2**63, 422)):
        answer = client.get(f"/api/jobs/{job_id}/{what}")
        assert answer.status_code == status, job_id
        assert answer.json()["error"]


def test_an_attempt_that_is_not_there_is_told(client: TestClient, job: Job) -> None:
    answer = client.get(f"/api/jobs/{job.id}/log?attempt=4")
    assert (answer.status_code, "no attempt 4" in answer.json()["error"]) == (404, True)


def test_strangers_get_nothing(tmp_path: Path, world: World, job: Job) -> None:
    settings = settings_for(world.folder.root, host="0.0.0.0")
    client = TestClient(build_api(Context(settings), Door(settings)), base_url="http://127.0.0.1")
    for what in ("log", "folder.zip", "../ended"):
        answer = client.get(f"/api/jobs/{job.id}/{what}", follow_redirects=False)
        assert answer.status_code in (303, 401, 403), answer.status_code
        assert b"second" not in answer.content


def test_links_are_left_out_wherever_they_point(
    world: World, tmp_path: Path, client: TestClient, job: Job
) -> None:
    path = world.folder.run(job.id)
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    (secret / "token").write_text("hidden")
    (path / "link").symlink_to(secret / "token")
    (path / "folder").symlink_to(secret)
    os.mkfifo(path / "pipe")  # reading it would wait for ever
    found = unzipped(client.get(f"/api/jobs/{job.id}/folder.zip").content)
    assert sorted(found) == [f"job-{job.id}/{name}" for name in ("data/images/a.png", "job.json", "log.txt")]
    (path / "log.txt").unlink()
    (path / "log.txt").symlink_to(secret / "token")
    assert client.get(f"/api/jobs/{job.id}/log").status_code == 404


def test_a_run_folder_that_is_a_link_itself_is_none(
    world: World, client: TestClient, job: Job, tmp_path: Path
) -> None:
    path = world.folder.run(job.id)
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    for what in ("log", "folder.zip"):
        assert client.get(f"/api/jobs/{job.id}/{what}").status_code == 404


def test_a_link_that_takes_a_files_place_meanwhile_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hidden")
    (tmp_path / "log.txt").symlink_to(tmp_path / "token")
    with pytest.raises(OSError, match=r"symbolic links|symlink"):
        job_downloads._open(tmp_path / "log.txt")


def test_a_big_folder_is_sent_in_small_pieces(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    noise = os.urandom(5_000_000)
    (folder / "weights.safetensors").write_bytes(noise)
    (folder / "log.txt").write_bytes(noise)
    pieces = [len(piece) for piece in zipped(folder, "job-1")]
    assert sum(pieces) > 10_000_000
    assert max(pieces) < 2_500_000
    assert unzipped(b"".join(zipped(folder, "job-1")))["job-1/log.txt"] == noise


def test_a_file_that_goes_meanwhile_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "c.txt"):
        (folder / name).write_text(name)
    made = zipped(folder, "job-1")
    data = next(made)
    (folder / "b.txt").unlink()
    assert sorted(unzipped(data + b"".join(made))) == ["job-1/a.txt", "job-1/c.txt"]


def test_a_file_from_before_1980_comes_along(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    os.utime(tmp_path / "old", (0, 0))
    assert unzipped(b"".join(zipped(tmp_path, "job-1"))) == {"job-1/old": b"old"}


def test_a_log_that_grows_stays_as_long_as_was_announced(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("0123456789")
    part = read_range(path, 2, 10)
    with path.open("a") as file:
        file.write("more")
    assert b"".join(part) == b"23456789"
