"""Starting workers: plain processes and torchrun's, with their output kept back unless they fail.

Nothing listens on any address but the loopback device's, and no host name is ever looked up: torchrun and its ranks
meet over files, and gloo is bound to the device. Credentials travel in the environment only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from aiockpt.demo.job import FAILURE_SUFFIX, Job, Report
from aiockpt.errors import AiockptError

#: How much of a failed worker's traceback or output is shown.
TAIL_LINES = 80

OUTPUT = "output.txt"

#: Seconds that torchrun has to end its ranks when it is told to end.
GRACE_S = 10.0

_TORCHRUN = ("-m", "torch.distributed.run", "--nnodes=1", "--rdzv-id=aiockpt-demo", "--local-addr=127.0.0.1")
_MEETING_OVER_A_FILE = ("--rdzv-backend=c10d", "--rdzv-conf=store_type=file")

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # or torchrun would open a port that listens everywhere
}

#: What would make a worker a rank of a run that the demo itself is part of.
_NOT_INHERITED = frozenset({"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"})


class WorkerFailed(AiockptError):
    """A worker did not do its job; the message ends with its last words."""


def run_job(job: Job, ranks: int, folder: Path, environment: Mapping[str, str], timeout_s: float) -> Report:
    """Have `ranks` new processes do the job.

    Args:
        folder: empty, for the job, its reports and the output.
        environment: variables on top of this process's own; the credentials are here or there.
        timeout_s: longest time that it may take.

    Raises:
        WorkerFailed: a process failed, or took too long. None is left behind.
    """
    job.write(folder)
    command = command_line(folder, ranks)
    with (
        (folder / OUTPUT).open("wb") as sink,
        subprocess.Popen(  # noqa: S603  # our own module
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**_inherited(), **_ENVIRONMENT, **environment},
        ) as process,
    ):
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise WorkerFailed(f"a worker took longer than {timeout_s:g} s{last_words(folder)}") from None
        finally:
            _end(process)
    if code:
        raise WorkerFailed(f"a worker failed with exit status {code}{last_words(folder)}")
    return Report.read(folder, ranks)


def command_line(folder: Path, ranks: int) -> list[str]:
    """The command that does the job in `folder`: a worker, or torchrun and its ranks."""
    worker = ["-m", "aiockpt.demo.worker", str(folder)]
    if ranks == 1:
        return [sys.executable, *worker]
    place = [f"--nproc-per-node={ranks}", f"--rdzv-endpoint={folder / 'rendezvous'}"]
    return [sys.executable, *_TORCHRUN, *_MEETING_OVER_A_FILE, *place, *worker]


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process if it still runs: gently first, because torchrun then ends its ranks."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def last_words(folder: Path) -> str:
    """The traceback of each rank that left one, or else the tail of the output, indented on lines of its own."""
    sources = sorted(folder.glob(f"*{FAILURE_SUFFIX}")) or [folder / OUTPUT]
    tails = (source.read_text(errors="replace").splitlines()[-TAIL_LINES:] for source in sources)
    return "".join(f"\n    {line}" for tail in tails for line in tail) or ", without a word"
