"""Soak: many saves and loads at once in one process, on a service with faults; nothing may pile up.

It lasts for about a minute; `AIOCKPT_SOAK_ROUNDS` makes it longer or shorter.
"""

from __future__ import annotations

import os

import pytest

from aiockpt.model import MiB
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place
from dcp.test_processes import FORKS, TIMEOUT_S
from dcp.workers import soak

ROUNDS = int(os.environ.get("AIOCKPT_SOAK_ROUNDS", "240"))

SETTINGS = {"part_size": 5 * MiB, "backoff_base_s": 0.001, "backoff_cap_s": 0.01, "max_connections": 16}


@pytest.mark.timeout(TIMEOUT_S * ROUNDS)
def test_nothing_piles_up(local: Place, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.ERROR, count=None, probability=0.05, seed=1))
    local_endpoint.add_fault(Fault(FaultKind.RESET, count=None, probability=0.05, seed=2, after_bytes=10_000))
    here, there = FORKS.Pipe(duplex=False)
    arguments = (local.server.environ(), local.uri("soak"), SETTINGS, ROUNDS, there)
    process = FORKS.Process(target=soak.run, args=arguments)
    process.start()
    there.close()
    errors, footprints, elapsed_s = here.recv()
    process.join()
    half, end = soak.Footprint.least(footprints[:5]), soak.Footprint.least(footprints[5:])
    print(f"{soak.THREADS} threads, {ROUNDS} rounds, {elapsed_s:.0f} s: first half {half}, second half {end}")  # noqa: T201  # shown with -s
    assert not errors, errors[0]
    assert local.uploads() == []
    assert end.threads <= half.threads
    assert end.files <= half.files + SETTINGS["max_connections"]
    assert end.resident_bytes - half.resident_bytes < 32 * MiB  # a hundredth of what is moved would be twice that
