from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from aiockpt.demo import launch
from aiockpt.demo.job import FAILURE_SUFFIX, Job, Report
from aiockpt.demo.launch import TAIL_LINES, WorkerFailed, command_line, run_job

SECRET = {"AWS_SECRET_ACCESS_KEY": "open-sesame"}
IGNORES_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: Job) -> Run:
    return Run(monkeypatch, tmp_path, job)


class Run:
    """`run_job` with a program in place of the worker."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, job: Job) -> None:
        self.monkeypatch = monkeypatch
        self.folder = folder
        self.job = job

    def __call__(self, program: str, timeout_s: float = 60.0) -> Report:
        command = [sys.executable, "-c", program, str(self.folder)]
        self.monkeypatch.setattr(launch, "command_line", lambda *_: command)
        return run_job(self.job, 1, self.folder, SECRET, timeout_s)


def test_the_report_comes_back(run: Run) -> None:
    Report({"step 1, shard 0": "0x1p0"}, {}, {}, None).write(run.folder, 0)
    assert run("pass").losses == {"step 1, shard 0": "0x1p0"}
    assert Job.read(run.folder) == run.job


def test_workers_get_credentials_by_environment(run: Run) -> None:
    with pytest.raises(WorkerFailed, match="status 3"):
        run("import os; raise SystemExit(3 * (os.environ['AWS_SECRET_ACCESS_KEY'] == 'open-sesame'))")
    assert "open-sesame" not in "".join(path.read_text() for path in run.folder.iterdir())


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"])
def test_a_run_around_the_demo_is_not_the_workers(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(WorkerFailed, match="status 4"):
        run(f"import os; raise SystemExit(4 * ({name!r} not in os.environ))")


def test_a_failure_shows_the_tail_of_the_output(run: Run) -> None:
    with pytest.raises(WorkerFailed) as caught:
        run("import sys; print(*range(100), sep='\\n'); sys.exit('went wrong')")
    first, *tail = str(caught.value).splitlines()
    assert first == "a worker failed with exit status 1"
    assert len(tail) == TAIL_LINES
    assert "    went wrong" in tail


def test_the_ranks_tracebacks_come_before_torchruns(run: Run) -> None:
    for rank in (0, 1):
        (run.folder / f"rank{rank}{FAILURE_SUFFIX}").write_text(f"OSError: {rank}\n")
    with pytest.raises(WorkerFailed) as caught:
        run("import sys; sys.exit('a summary of torchrun')")
    assert str(caught.value) == "a worker failed with exit status 1\n    OSError: 0\n    OSError: 1"


def test_a_silent_failure_says_so(run: Run) -> None:
    with pytest.raises(WorkerFailed, match=r"exit status 2, without a word$"):
        run("raise SystemExit(2)")


@pytest.mark.parametrize("first", ["pass", IGNORES_SIGTERM])
def test_a_worker_that_hangs_is_ended(run: Run, first: str) -> None:
    run.monkeypatch.setattr(launch, "GRACE_S", 0.2)
    with pytest.raises(WorkerFailed, match=r"longer than 0\.5 s"):
        run(f"{first}; import os, time; print(os.getpid(), flush=True); time.sleep(600)", timeout_s=0.5)
    pid = int((run.folder / "output.txt").read_text() or "0")
    if pid:  # a slow machine may not have got so far
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_one_process_is_a_worker(tmp_path: Path) -> None:
    assert command_line(tmp_path, 1) == [sys.executable, "-m", "aiockpt.demo.worker", str(tmp_path)]


def test_several_are_torchruns_and_meet_over_files(tmp_path: Path) -> None:
    command = command_line(tmp_path, 2)
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert {"--nproc-per-node=2", f"--rdzv-endpoint={tmp_path}/rendezvous", "--rdzv-conf=store_type=file"} < {*command}
    assert command[-3:] == ["-m", "aiockpt.demo.worker", str(tmp_path)]
