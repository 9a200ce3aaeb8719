from __future__ import annotations

import pytest
import torch

from aiockpt.testing import LocalEndpoint
from commands.conftest import Run, document
from dcp.checkpoints import Place, random_tensor


@pytest.fixture
def uri(local: Place) -> str:
    local.save({"model": {"w": random_tensor((100, 100), torch.float32), "b": torch.ones(3)}, "step": 3})
    return local.uri("ckpt")


def test_a_good_checkpoint(aiockpt: Run, local: Place, uri: str) -> None:
    result = aiockpt("verify", "--json", uri)
    answer = document(result)
    assert result.exit_code == 0
    assert (answer["uri"], answer["ok"], answer["items"], answer["damaged"]) == (uri, True, 3, [])
    assert answer["nbytes"] == len(local.get("ckpt/__0_0.distcp"))
    assert aiockpt("verify", uri).stdout.endswith(": no damage found\n")


def test_a_damaged_one(aiockpt: Run, local: Place, uri: str, local_endpoint: LocalEndpoint) -> None:
    good = document(aiockpt("inspect", "--json", "--match", "*.w", uri))["tensors"][0]["chunks"][0]
    local_endpoint.flip_bit(local.bucket, f"ckpt/{good['object']}", good["start"] + 20_000)
    result = aiockpt("verify", "--json", uri)
    (damaged,) = document(result)["damaged"]
    assert result.exit_code == 1
    assert damaged["name"] == "model.w"
    assert (damaged["object"], damaged["start"], damaged["end"]) == (good["object"], good["start"], good["end"])

    result = aiockpt("verify", uri)
    assert result.exit_code == 1
    assert result.stdout.startswith("damaged: model.w: ")
    assert result.stdout.endswith(": 1 item damaged\n")


def test_no_checkpoint(aiockpt: Run, local: Place) -> None:
    assert aiockpt("verify", local.uri("none")).exit_code == 3
