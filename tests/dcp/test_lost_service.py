"""A service that is killed in the middle of a save or a load: the typed error, soon; once it is back, all goes on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt.errors import S3Exception, TransportError
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, failure, same_bits
from dcp.workers.processes import state
from servers.base import S3Server, make_bucket

#: Nothing here waits for a stall to end by itself.
SETTINGS: dict[str, Any] = {
    "stall_timeout_s": 1000.0,
    "part_size": 5 * 2**20,
    "max_attempts": 3,
    "backoff_base_s": 0.001,
}

TIMEOUT_S = 30


@pytest.fixture
def mortal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Place, LocalEndpoint]]:
    """A place with a checkpoint, on an endpoint of its own that keeps its objects on disk."""
    with LocalEndpoint(folder=tmp_path) as endpoint:
        server = S3Server("mortal", endpoint.url, endpoint.access_key, endpoint.secret_key)
        for name, value in server.environ().items():
            monkeypatch.setenv(name, value)
        place = Place(server, make_bucket(server))
        place.save(state())
        yield place, endpoint


@pytest.mark.parametrize(("direction", "operation"), [("save", "UploadPart"), ("load", "GetObject")])
def test_killed_in_the_middle(
    direction: str, operation: str, mortal: tuple[Place, LocalEndpoint], tmp_path: Path
) -> None:
    place, endpoint = mortal
    errors: list[BaseException] = []

    def work() -> None:
        try:
            if direction == "save":
                place.save(state(1), **SETTINGS)
            else:
                place.load(emptied(state()), **SETTINGS)
        except CheckpointException as error:
            errors.append(failure(error))

    endpoint.add_fault(Fault(FaultKind.STALL, operation, key=".distcp", count=None, after_bytes=1000))
    thread = threading.Thread(target=work)
    thread.start()
    while not endpoint.stats().faults:
        pass
    os.kill(endpoint.pid, signal.SIGKILL)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive(), "it hangs"
    (error,) = errors
    assert isinstance(error, TransportError)
    assert error.attempts == SETTINGS["max_attempts"]
    assert (error.bucket, ".distcp" in error.key) == (place.bucket, True)
    assert isinstance(error, S3Exception)
    with LocalEndpoint(folder=tmp_path) as again:
        revived = Place(S3Server("again", again.url, again.access_key, again.secret_key), place.bucket)
        assert same_bits(revived.load(emptied(state())), state())
