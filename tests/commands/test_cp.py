from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from aiockpt.testing import LocalEndpoint, Shape
from commands.conftest import Run, document
from dcp.checkpoints import Place, emptied, load, random_tensor, same_bits, save
from servers.base import make_bucket

STATE: dict[str, Any] = {"w": random_tensor((3, 100_000), torch.float32, 1), "b": torch.ones(3), "step": 3}


def test_get(aiockpt: Run, local: Place, tmp_path: Path) -> None:
    local.save(STATE)
    folder = tmp_path / "here"
    answer = document(aiockpt("get", "--json", local.uri("ckpt"), folder))
    assert answer.pop("seconds") > 0
    assert answer == {
        "source": local.uri("ckpt"),
        "target": str(folder),
        "objects": 1,
        "nbytes": len(local.get("ckpt/__0_0.distcp")),
    }
    assert same_bits(load(emptied(STATE), FileSystemReader(folder)), STATE)


def test_put(aiockpt: Run, local: Place, tmp_path: Path) -> None:
    save(STATE, FileSystemWriter(tmp_path, sync_files=False))
    result = aiockpt("put", tmp_path, local.uri("ckpt"))
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{local.uri('ckpt')}: 1.2 MB in 1 object from {tmp_path}, ")
    assert same_bits(local.load(emptied(STATE)), STATE)


def test_cp_across_buckets(aiockpt: Run, local: Place, local_endpoint: LocalEndpoint) -> None:
    other = Place(local.server, make_bucket(local.server))
    local.save(STATE)
    document(aiockpt("cp", "--json", local.uri("ckpt"), other.uri("a")))
    assert same_bits(other.load(emptied(STATE), "a"), STATE)
    assert local_endpoint.stats().requests["CopyObject"] == 1


def test_cp_through_us(aiockpt: Run, local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save(STATE)
    result = aiockpt("cp", "--from-endpoint-url", local_endpoint.url, local.uri("ckpt"), local.uri("a"))
    assert result.exit_code == 0, result.output
    assert same_bits(local.load(emptied(STATE), "a"), STATE)
    assert "CopyObject" not in local_endpoint.stats().requests


def test_cp_from_and_to_folders(aiockpt: Run, local: Place, tmp_path: Path) -> None:
    local.save(STATE)
    document(aiockpt("cp", "--json", local.uri("ckpt"), tmp_path / "a"))
    document(aiockpt("cp", "--json", tmp_path / "a", local.uri("again")))
    assert same_bits(local.load(emptied(STATE), "again"), STATE)


def test_what_is_there_is_overwritten_only_when_told(aiockpt: Run, local: Place, tmp_path: Path) -> None:
    local.save(STATE)
    local.save({"other": torch.ones(5)}, "there")
    for target in (local.uri("there"), tmp_path):
        refused = aiockpt("cp", local.uri("ckpt"), target)
        if target == tmp_path:
            assert refused.exit_code == 0
            refused = aiockpt("cp", local.uri("ckpt"), target)
        assert refused.exit_code == 5
        assert "already: pass --overwrite" in refused.stderr
        assert aiockpt("cp", "--overwrite", local.uri("ckpt"), target).exit_code == 0
    assert same_bits(local.load(emptied(STATE), "there"), STATE)
    assert same_bits(load(emptied(STATE), FileSystemReader(tmp_path)), STATE)


@pytest.mark.parametrize("target", ["same", "folders"])
def test_what_makes_no_sense_is_refused(aiockpt: Run, local: Place, tmp_path: Path, target: str) -> None:
    local.save(STATE)
    places = [local.uri("ckpt"), local.uri("ckpt/")] if target == "same" else [tmp_path, tmp_path / "b"]
    assert aiockpt("cp", "--overwrite", *places).exit_code == 2
    assert same_bits(local.load(emptied(STATE)), STATE)


def test_what_is_not_there(aiockpt: Run, local: Place, tmp_path: Path) -> None:
    assert aiockpt("get", local.uri("none"), tmp_path / "x").exit_code == 3
    assert aiockpt("put", tmp_path, local.uri("x")).exit_code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["get", "put"])
def test_ctrl_c(local: Place, local_endpoint: LocalEndpoint, tmp_path: Path, verb: str) -> None:
    state = {"w": torch.zeros(8_000_000)}
    save(state, FileSystemWriter(tmp_path / "from", sync_files=False))
    local.save(state)
    local_endpoint.reset_stats()
    local_endpoint.set_shape(Shape(total_bytes_per_s=1e6))
    places = [local.uri("ckpt"), tmp_path / "to"] if verb == "get" else [tmp_path / "from", local.uri("to")]
    command = [sys.executable, "-m", "aiockpt", verb, *map(str, places)]
    environ = os.environ | local_endpoint.environ()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        while local_endpoint.stats().requests_current < 2:  # only data move side by side
            with pytest.raises(subprocess.TimeoutExpired):  # it is at work
                process.wait(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    local_endpoint.set_shape(Shape())
    assert (process.returncode, said) == (130, "Interrupted.\n")
    assert not (tmp_path / "to").exists()
    assert local.uploads() == []
    assert local.keys("to/") == []
