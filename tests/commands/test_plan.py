from __future__ import annotations

from typing import Any

import pytest
import torch

from aiockpt.testing import LocalEndpoint
from commands.conftest import Run, document, lines
from dcp.checkpoints import Place

STATE: dict[str, Any] = {"w": torch.zeros(1024, 1024), "norm": torch.zeros(1024), "step": 5}


@pytest.fixture
def uri(local: Place) -> str:
    local.save(STATE)
    return local.uri("ckpt")


def test_from_metadata_alone(aiockpt: Run, local: Place, uri: str, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.reset_stats()
    answer = document(aiockpt("plan", uri, "--world-size", "4", "--json"))
    assert [one.key for one in local_endpoint.requests()] == ["ckpt/.metadata"]
    assert (answer["uri"], answer["world_size"], len(answer["ranks"])) == (uri, 4, 4)
    assert answer["assumed"] == {
        "shard_dim": 0, "replicate": [], "bits_per_s": 10e9, "latency_s": 0.02, "connections": 25,
        "price_per_1000_gets_usd": 0.0004,
    }  # fmt: skip
    first, totals = answer["ranks"][0], answer["totals"]
    metadata_nbytes = len(local.get("ckpt/.metadata"))
    assert first["wanted_bytes"] - metadata_nbytes - 1024 * 1024 < 4096  # a quarter of both, and the step
    assert totals["gets"] == sum(one["gets"] for one in answer["ranks"])
    assert totals["amplification"] == totals["fetched_bytes"] / totals["wanted_bytes"] >= 1
    assert totals["requests_usd"] == pytest.approx((totals["gets"] + totals["heads"]) * 0.4e-6)
    assert totals["seconds"] == max(one["seconds"] for one in answer["ranks"]) > 2 * 0.02
    assert totals["exact"]


def test_some_ranks_of_another_world(aiockpt: Run, uri: str) -> None:
    table = lines(
        aiockpt("plan", uri, "--world-size", "512", "--rank", "0", "--rank", "511", "--shard-dim", "1",
                "--replicate", "norm", "--gbps", "1", "--latency-ms", "100", "--price-per-1000-gets", "1000")
    )  # fmt: skip
    assert table[0] == ["rank", "objects", "requests", "wanted", "fetched", "amplification", "time"]
    assert [line[0] for line in table[1:3]] == ["0", "511"]
    assert " ".join(table[3]).startswith("2 ranks: ")
    requests = int(table[1][2]) + int(table[2][2])
    assert f"{requests} requests for ${requests}.000000" in " ".join(table[3])


@pytest.mark.parametrize("arguments", [["--world-size", "0"], [], ["--world-size", "2", "--rank", "2"]])
def test_usage(aiockpt: Run, uri: str, arguments: list[str]) -> None:
    assert aiockpt("plan", uri, *arguments).exit_code == 2


def test_metadata_of_ranks_cannot_be_resharded(aiockpt: Run, local: Place, uri: str) -> None:
    local.put("ranks/__0.metadata", local.get("ckpt/.metadata"))
    result = aiockpt("plan", local.uri("ranks"), "--world-size", "2")
    assert result.exit_code == 5
    assert "metadata of its own for each rank" in result.stderr
