"""Trainings in several processes: the same weights as in one, one voice, one end, and nothing left running."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import psutil
import pytest
import torch
from safetensors.torch import load_file

import tiny
from factories import USER, open_world
from jobs import launch, queue
from jobs.configs import DpoConfig
from jobs.freezing import freeze
from jobs.gpu.devices import claim_device
from jobs.gpu.loading import Loaded
from jobs.gpu.ranks import check_processes
from jobs.launch import Ending, Rank, is_lost_peer, verdict
from jobs.placement import check_accelerate, read_accelerate
from jobs.processes import PROJECT
from jobs.rank import RankReporter
from jobs.runs import JobFile, RunFolder
from jobs.worker import work
from storage import jobs as store
from storage import pairs
from storage.errors import UserError
from storage.lifecycle import ENDED, JobStatus
from supervised import started_by
from test_dpo_job import dpo_run, pair
from test_sft_job import FAST as FAST_SFT
from test_sft_job import sft_run

Wait = Callable[..., None]
Start = Callable[..., subprocess.Popen[bytes]]

TWO: dict[str, Any] = {
    "dataset": "pairs",
    "dtype": "float32",
    "batch_size": 2,
    "global_batch": 4,
    "processes": 2,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "learning_rate": 1e-2,
    "epochs": 100.0,
    "max_steps": 5,
    "evaluations": 1,
    "watched_tokens": 4,
}
IMPATIENT = (
    "import sys; from jobs import launch, worker; launch.TERM_GRACE = {grace}; sys.exit(worker.main(sys.argv[1:]))"
)
LONG = {**TWO, "max_steps": 1_000_000, "evaluations": 0}
MULTI = "compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\nnum_machines: 1\nnum_processes: {number}\n"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in each of two processes: with more threads sums round differently, and Adam makes it more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a worker as the supervisor does; whatever is left of it in the end is killed.

    With `grace` its processes have so many seconds from SIGTERM to SIGKILL.
    """
    begun: list[tuple[subprocess.Popen[bytes], RunFolder]] = []

    def run_it(run: RunFolder, grace: float | None = None) -> subprocess.Popen[bytes]:
        words = ["-m", "jobs.worker"] if grace is None else ["-c", IMPATIENT.format(grace=grace)]
        with run.log.open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, *words, str(run.path)],
                cwd=PROJECT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        begun.append((child, run))
        return child

    yield run_it
    for child, run in begun:
        for process in ranks_of(run):
            process.kill()
        child.kill()
        child.wait()


def ranks_of(run: RunFolder) -> list[psutil.Process]:
    """All processes that work on this run as ranks or start them, found by their words alone."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if words and words[-1] == str(run.path) and "jobs.worker" not in words:
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def done(child: subprocess.Popen[bytes], run: RunFolder) -> dict[str, Any]:
    """The run's one end."""
    child.wait(120)
    ends = tiny.events(run, "end")
    assert len(ends) == 1, run.log_tail()
    return ends[0]


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def apart(one: RunFolder, other: RunFolder) -> float:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def training(run: RunFolder) -> bool:
    return run.events.exists() and any(
        event["done"] > 0 for event in tiny.events(run, "progress") if event["unit"] == "steps"
    )


# the same weights ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_two(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = dpo_run(tmp_path_factory.mktemp("two") / "run", TWO)
    assert work(run.path) == 0, tiny.events(run, "end")
    return run


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(in_two: RunFolder, tmp_path: Path) -> None:
    one = dpo_run(tmp_path / "one", {**TWO, "processes": 1})
    assert work(one.path) == 0
    assert apart(in_two, one) < 1e-5
    half = dpo_run(tmp_path / "half", {**TWO, "processes": 1, "global_batch": 2})
    assert work(half.path) == 0
    assert apart(in_two, half) > 1e-2, "half the batch is seen in the weights"
    told = [
        {name: value for event in tiny.events(run, "metric") for name, value in event["values"].items()}
        for run in (in_two, one)
    ]
    for name in ("loss", "reward_margin", "gradient_norm", "heldout_reward_margin", "heldout_loss"):
        assert told[0][name] == pytest.approx(told[1][name], rel=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "steerlm"])
def test_supervised_training_in_two_processes_ends_with_the_weights_of_one(tmp_path: Path, kind: str) -> None:
    """Answers of unlike lengths: the loss is the mean over the tokens of a step, whoever has them."""
    found = []
    for processes in (1, 2):
        config = {**FAST_SFT, "batch_size": 2, "global_batch": 4, "max_steps": 4, "evaluations": 0}
        run = sft_run(tmp_path / f"{processes}", kind, {**config, "processes": processes})
        assert work(run.path) == 0, tiny.events(run, "end")
        found.append(run)
    assert apart(*found) < 1e-5


@pytest.mark.slow
def test_one_process_speaks_and_the_world_is_told(in_two: RunFolder) -> None:
    kinds = [event["kind"] for event in tiny.events(in_two)]
    assert [kinds.count(kind) for kind in ("started", "end", "adapter")] == [1, 1, 1]
    assert kinds[-1] == "end"
    steps = [event["step"] for event in tiny.events(in_two, "metric") if "loss" in event["values"]]
    assert steps == [1, 2, 3, 4, 5]
    notes = [event["text"] for event in tiny.events(in_two, "note")]
    assert "2 processes, each a batch of 2, accumulation 1: 4 pairs a step." in notes
    assert ranks_of(in_two) == []


@pytest.mark.slow
def test_the_reference_is_computed_once(in_two: RunFolder) -> None:
    notes = [event["text"] for event in tiny.events(in_two, "note") if event["text"].startswith("Reference")]
    assert [re.findall(r"(\d+) computed", note) for note in notes][:1] == [["28"]]
    books = list((in_two.path.parent / "references").glob("*.jsonl"))
    keys = [json.loads(line)["key"] for book in books for line in book.read_text().splitlines() if line]
    assert len(books) == 1
    assert keys
    assert len(keys) == len(set(keys)), "each answer once"


# accelerate's file --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_accelerate_starts_them_from_its_file(in_two: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(MULTI.format(kind="MULTI_GPU", number=2))
    run = dpo_run(tmp_path / "run", {**TWO, "accelerate_config": str(file)})
    assert work(run.path) == 0, tiny.events(run, "end")
    assert apart(in_two, run) < 1e-5
    assert (run.path / "data" / "accelerate.yaml").read_text() == file.read_text()


@pytest.mark.slow
def test_a_file_that_starts_another_number_is_refused_by_the_ranks(tmp_path: Path) -> None:
    """accelerate starts one process where the kind is NO, whatever num_processes says."""
    file = tmp_path / "accelerate.yaml"
    file.write_text(MULTI.format(kind="'NO'", number=2))
    run = dpo_run(tmp_path / "run", {**TWO, "accelerate_config": str(file)})
    assert work(run.path) == 1
    reason = tiny.events(run, "end")[0]["reason"]
    assert reason.startswith("processes is 2, and accelerate_config")
    assert "started 1. Set num_processes" in reason
    assert not any("loading" in event["text"] for event in tiny.events(run, "phase"))


@pytest.mark.parametrize(
    ("text", "processes", "words"),
    [
        (None, 2, "cannot be read"),
        ("{", 2, "is not YAML"),
        ("- 1", 2, "must hold names and values"),
        ("num_processes: two", 2, "num_processes 'two'; it must be a whole number"),
        ("num_processes: 4", 2, "starts 4 processes (num_processes), and processes is 2"),
        ("num_processes: 3\nnum_machines: 2", 3, "cannot be shared evenly by the 2 machines"),
        ("num_machines: 0", 2, "num_machines 0"),
    ],
)
def test_files_of_accelerate_that_cannot_be_used(
    tmp_path: Path, text: str | None, processes: int, words: str
) -> None:
    file = tmp_path / "accelerate.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        check_accelerate(file, processes)


def test_the_words_that_start_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, config = RunFolder(tmp_path), DpoConfig.model_validate(TWO)
    assert launch.command(run, config, None)[1:] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "jobs.rank", str(tmp_path)),
    ]
    file = tmp_path / "mine.json"
    file.write_text('{"num_processes": -1, "num_machines": 2}')
    words = launch.command(run, config, read_accelerate(file))
    assert words[words.index("--num_processes") + 1] == "2", "the file leaves it open"
    assert words[words.index("--gpu_ids") + 1] == "all"
    assert "--main_process_port" not in words, "several machines agree on one in the file"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    job = JobFile(job_id=1, kind="dpo", config={}, user="a", device="cuda:0,cuda:1", models_dir="", created_at="")
    made = launch.environment(job, config, None)
    assert (made["OMP_NUM_THREADS"], made["PLUMB_WORKER_DEVICE"]) == ("6", "cuda:0,cuda:1")
    assert made["PLUMB_LAUNCHER"] == str(os.getpid())


# stops and deaths ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stop_reaches_all_processes(tmp_path: Path, start: Start, wait_for: Wait) -> None:
    run = dpo_run(tmp_path / "run", LONG)
    child = start(run)
    wait_for(lambda: training(run), "it trains")
    run.ask_to_stop()
    end = done(child, run)
    assert (child.returncode, end["status"]) == (0, "stopped")
    step = re.findall(r"stopped after step (\d+) of", end["reason"])[0]
    assert (run.checkpoints / f"checkpoint-{step}" / "trainer_state.json").is_file()
    states = sorted(file.name for file in (run.checkpoints / f"checkpoint-{step}").glob("rng_state*"))
    assert states == ["rng_state_0.pth", "rng_state_1.pth"], "both left at this step"
    assert [rank.ending.status for rank in launch.read_ranks(run) if rank.ending] == ["stopped", "stopped"]
    assert ranks_of(run) == []


@pytest.mark.slow
def test_a_stop_before_training_is_heard_too(tmp_path: Path) -> None:
    run = dpo_run(tmp_path / "run", TWO)
    run.ask_to_stop()
    assert work(run.path) == 0
    assert tiny.events(run, "end")[0]["status"] == "stopped"


@pytest.mark.slow
def test_the_reason_of_a_process_is_the_jobs(tmp_path: Path) -> None:
    run = dpo_run(tmp_path / "run", TWO, [pair(n, [], chosen=" " if n == 4 else "yes") for n in range(8)])
    assert work(run.path) == 1
    end = tiny.events(run, "end")
    assert [event["status"] for event in end] == ["failed"]
    assert end[0]["reason"].startswith("Pair 4 has an empty answer (chosen)")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_process_fails_the_job_and_takes_the_others_along(
    tmp_path: Path, start: Start, wait_for: Wait, number: int
) -> None:
    run = dpo_run(tmp_path / "run", LONG)
    child = start(run)
    wait_for(lambda: training(run), "it trains")
    os.kill(launch.read_ranks(run)[number].pid, signal.SIGKILL)
    end = done(child, run)
    assert (child.returncode, end["status"]) == (1, "failed")
    # torchrun looks every tenth of a second: the other one may have noticed, and ended, before.
    told = r"was ended by SIGKILL\.|ended without a word\."
    assert re.match(rf"Process {number + 1} of 2 ({told})", end["reason"])
    assert end["cause"] in ("killed", "gone"), "it may go better another time"
    assert ranks_of(run) == []


@pytest.mark.slow
def test_sigterm_ends_all_of_them_softly(tmp_path: Path, start: Start, wait_for: Wait) -> None:
    run = dpo_run(tmp_path / "run", LONG)
    child = start(run)
    wait_for(lambda: training(run), "it trains")
    os.killpg(child.pid, signal.SIGTERM)
    end = done(child, run)
    assert (child.returncode, end["status"]) == (0, "stopped")
    assert "SIGTERM" in end["reason"]
    assert ranks_of(run) == []


@pytest.mark.slow
def test_processes_that_hang_are_ended_hard(tmp_path: Path, start: Start, wait_for: Wait) -> None:
    """One doesn't move, the other waits for it in the exchange of gradients, where no signal is heard."""
    run = dpo_run(tmp_path / "run", LONG)
    child = start(run, grace=4.0)
    wait_for(lambda: training(run), "it trains")
    os.kill(launch.read_ranks(run)[1].pid, signal.SIGSTOP)
    os.killpg(child.pid, signal.SIGTERM)
    end = done(child, run)
    assert (child.returncode, end["status"]) == (0, "stopped")
    assert end["reason"].startswith("ended by SIGTERM")
    assert ranks_of(run) == []


@pytest.mark.slow
def test_a_killed_launcher_leaves_nobody_training(tmp_path: Path, start: Start, wait_for: Wait) -> None:
    run = dpo_run(tmp_path / "run", LONG)
    child = start(run)
    wait_for(lambda: training(run), "it trains")
    assert len(ranks_of(run)) == 3, "two, and who started them"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    wait_for(lambda: not ranks_of(run), "the ranks end themselves", seconds=30)
    assert tiny.events(run, "end") == [], "it goes on where it was: the supervisor starts it again"


@pytest.mark.slow
def test_a_killed_training_goes_on_by_itself(tmp_path: Path, wait_for: Wait) -> None:
    """The whole way: queue, supervisor, two processes, kill -9, the next attempt from a checkpoint."""
    world = open_world(tmp_path / "data")
    made = world.job()
    world.db.conn.execute("UPDATE jobs SET status = 'done'")
    for number in range(1, 9):
        one, two = world.candidates(world.sample(number), ["It is a circle.", "circle"], made)
        pairs.choose_by_hand(world.db, USER, one.id, two.id)
    freeze(world.db, USER, "shapes", heldout_percent=25)
    try:
        values = {**TWO, "dataset": "shapes", "model": str(tiny.tiny_llava()), "global_batch": 4, "max_steps": 60}
        job = queue.submit(world.db, world.settings, "dpo", {**values, "evaluations": 6}, USER)
        run = RunFolder(world.folder.run(job.id))
        wait_for(lambda: list(run.checkpoints.glob("*/trainer_state.json")), "a checkpoint is there")
        pid = store.attempts_of(world.db, job.id)[-1].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: store.get_job(world.db, job.id).status in ENDED, "the job ends", seconds=120)
        ended = store.get_job(world.db, job.id)
        assert ended.status is JobStatus.DONE, ended.reason
        assert len(store.attempts_of(world.db, job.id)) == 2
        notes = [event["text"] for event in tiny.events(run, "note")]
        assert any("Going on from the checkpoint of step" in text for text in notes)
        assert [step for step, _ in store.metrics_of(world.db, job.id)["loss"]] == list(range(1, 61))
        assert ranks_of(run) == []
    finally:
        for process in started_by(world):
            process.kill()
        world.db.close()


# the verdict --------------------------------------------------------------------------------------------------

DONE = Ending("done")
STOPPED = Ending("stopped", "stopped after step 3 of 9")
USER_ERROR = Ending("failed", "Pair 4 is empty.", "foreseen")
BUG = Ending("failed", "ValueError: x", "unforeseen")
PEER = Ending("failed", "RuntimeError: Connection closed by peer", "peer")
LOG = "failed (exitcode: -9) local_rank: 1 (pid: 321) of binary"


def ranks(*endings: Ending | None) -> list[Rank]:
    """Each ended a second after the one before."""
    return [Rank(n, 100 + n, socket.gethostname(), float(n), ending) for n, ending in enumerate(endings)]


@pytest.mark.parametrize(
    ("endings", "code", "asked", "status", "words"),
    [
        ((DONE, DONE), 0, False, "done", ""),
        ((STOPPED, STOPPED), 0, True, "stopped", "after step 3"),
        ((STOPPED, None), 1, True, "stopped", "after step 3"),
        ((STOPPED, PEER), 1, True, "stopped", "after step 3"),
        ((PEER, USER_ERROR), 1, False, "failed", "Pair 4"),
        ((BUG, USER_ERROR), 1, False, "failed", "Pair 4"),
        ((STOPPED, USER_ERROR), 1, True, "failed", "Pair 4"),
        ((BUG, None), 1, False, "failed", "ValueError"),
        ((PEER, BUG), 1, False, "failed", "ValueError"),
        ((PEER, None), 1, False, "failed", "Process 2 of 2 was ended by SIGKILL"),
        ((STOPPED, None), 1, False, "failed", "Process 2 of 2 was ended by SIGKILL"),
        ((None, None), 1, False, "failed", "Process 2 of 2 was ended by SIGKILL"),
        ((DONE, None), 1, False, "failed", "Process 2 of 2 was ended by SIGKILL"),
        ((None, DONE), 0, False, "failed", "Process 1 of 2 ended without a word"),
        ((PEER, PEER), 1, False, "failed", "Connection closed"),
        ((DONE, STOPPED), 1, False, "failed", "ended by itself"),
        ((DONE, DONE), 1, False, "failed", "exit code 1"),
        ((), 1, False, "failed", "did not start (exit code 1 of the launcher). Its log ends: failed"),
    ],
)
def test_the_jobs_end_is_made_of_its_processes_ends(
    endings: tuple[Ending | None, ...], code: int, asked: bool, status: str, words: str
) -> None:
    found = verdict(ranks(*endings), 2, code, asked, LOG)
    assert (found.status, words in found.reason) == (status, True), found


def test_a_lost_peer_is_told_from_a_cause() -> None:
    assert is_lost_peer(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"))
    assert is_lost_peer(type("DistBackendError", (RuntimeError,), {})("NCCL error"))
    assert not is_lost_peer(RuntimeError("The size of tensor a must match"))
    assert not is_lost_peer(UserError("Connection closed by peer"))


# in a rank ----------------------------------------------------------------------------------------------------


def test_only_the_first_process_speaks_and_all_hear(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with RankReporter(run, speaks=False) as silent, RankReporter(run, speaks=True) as first:
        silent.note("from the second")
        first.note("from the first")
        run.ask_to_stop()
        assert silent.stop_requested()
        assert first.stop_requested()
    assert [event["kind"] for event in tiny.events(run)] == ["note"], "neither started nor heartbeat nor end"


def test_each_process_takes_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert claim_device("cuda:0,cuda:1") == torch.device("cuda", 1)
    assert claim_device("auto") == torch.device("cuda", 1)
    assert taken == [1, 1]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,6", "accelerate counts among all of them"
    assert claim_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="Process 3 on this machine finds no device: the job has 2"):
        claim_device("cuda:0,cuda:1")


def test_a_world_of_another_size_is_refused(tmp_path: Path) -> None:
    """What torch and accelerate say counts, not what was asked for."""

    class Trainer:
        class args:
            world_size = 1
            train_batch_size = 2

        class accelerator:
            num_processes = 1

    with RankReporter(RunFolder(tmp_path), speaks=True) as reporter:
        with pytest.raises(UserError, match="processes is 2, batch_size 2: torch has 1 processes"):
            check_processes(Trainer, DpoConfig.model_validate(TWO), reporter)
        check_processes(Trainer, DpoConfig.model_validate({**TWO, "processes": 1}), reporter)
    notes = [event["text"] for event in tiny.events(RunFolder(tmp_path), "note")]
    assert notes == ["1 process, a batch of 2, accumulation 2: 4 pairs a step."]


@pytest.mark.parametrize("number", [0, 1])
def test_weights_that_are_spread_are_gathered_by_all_before_the_first_one_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """With FSDP or DeepSpeed a process has a part of the adapter alone, and gathering needs all of them."""
    from jobs.gpu import training as module

    saved: list[Any] = []

    def saving(model: Any, folder: Path, weights: Any = None) -> None:
        saved.append(weights)
        folder.mkdir()

    monkeypatch.setattr(module, "save_adapter", saving)
    run = dpo_run(tmp_path / "run", TWO)
    config = run.job().parsed()
    assert isinstance(config, DpoConfig)
    trainer = MagicMock(is_fsdp_enabled=True, is_deepspeed_enabled=False)
    trainer.is_world_process_zero.return_value = number == 0
    trainer.accelerator.get_state_dict.return_value = {"whole": 1}
    loaded = Loaded("demo", None, None, torch.device("cpu"))
    module.save(run, run.job(), config, loaded, trainer, MagicMock(last={}), MagicMock())
    trainer.accelerator.get_state_dict.assert_called_once_with(trainer.model_wrapped)
    assert saved == ([{"whole": 1}] if number == 0 else [])
