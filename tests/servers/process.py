"""One server process on loopback: started, awaited until it answers HTTP, stopped by its pid.

Knows nothing of S3. A process started here does not outlive pytest: normally `stop` ends it; where pytest
dies without running its finalisers, Linux kills it.
"""

from __future__ import annotations

import random
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

HOST = "127.0.0.1"

START_LIMIT_S = 30.0
STOP_LIMIT_S = 5.0
POLL_S = 0.02

#: Linux gives ports from 32768 on to outgoing connections, so one below cannot be taken between our look and
#: the server's bind by anything but another server.
PORTS = range(20_000, 30_000)

#: Executes its arguments, after asking Linux for SIGKILL (9) when the parent dies (1 is PR_SET_PDEATHSIG).
#: The parent is the thread that starts the process; session fixtures run on pytest's main thread.
DIE_WITH_PARENT = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])
"""


def free_port() -> int:
    """A port that nobody listens on."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port among 100 tried in {PORTS.start}-{PORTS.stop - 1}")


class ServerProcess:
    """A running server that will answer HTTP (HTTPS with `tls`) on `port`; its output goes to `log`."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        port: int,
        log: Path,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._port = port
        self._log = log
        self._tls = tls
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for pytest; and Swift ends by killing its process group
            )

    def wait_until_answering(self) -> None:
        """Return once any HTTP answer comes.

        Raises:
            RuntimeError: it ended or did not answer within `START_LIMIT_S`; with the end of its output.
        """
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if (status := self._popen.poll()) is not None:
                raise RuntimeError(f"server ended with status {status}:\n{self._output_tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"server did not answer within {START_LIMIT_S} s:\n{self._output_tail()}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End the process, by force if it does not follow within `STOP_LIMIT_S`, and reap it."""
        self._popen.terminate()
        try:
            self._popen.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def _answers(self) -> bool:
        connection = (
            HTTPSConnection(HOST, self._port, timeout=START_LIMIT_S, context=self._tls)
            if self._tls
            else HTTPConnection(HOST, self._port, timeout=START_LIMIT_S)
        )
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()
        return True

    def _output_tail(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]
