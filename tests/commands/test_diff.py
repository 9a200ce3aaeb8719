from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aiockpt.testing import LocalEndpoint
from commands.conftest import Run, document
from dcp.checkpoints import Place, random_tensor

ONE: dict[str, Any] = {
    "large": random_tensor((300, 300), torch.float32),
    "conjugated": torch.ones(3, dtype=torch.complex64).conj(),  # of whose elements the metadata have no CRC32
    "small": torch.ones(3),
    "gone": torch.ones(2),
    "shape": torch.ones(4),
    "step": 1,
}


@pytest.fixture
def uris(local: Place) -> list[str]:
    other = {name: value for name, value in ONE.items() if name != "gone"}
    other |= {"new": torch.ones(1), "shape": torch.ones(2, 2), "step": 2, "large": ONE["large"] + 1}
    local.save(ONE, "one")
    local.save(other, "other")
    local.save(ONE, "again")
    return [local.uri(name) for name in ("one", "other", "again")]


def test_from_metadata_alone(aiockpt: Run, uris: list[str], local_endpoint: LocalEndpoint) -> None:
    local_endpoint.reset_stats()
    result = aiockpt("diff", "--json", *uris[:2])
    assert result.exit_code == 1
    answer = document(result)
    assert {one.key for one in local_endpoint.requests()} == {"one/.metadata", "other/.metadata"}
    assert (answer["one"], answer["other"], answer["same"]) == (*uris[:2], False)
    assert (answer["removed"], answer["added"]) == (["gone"], ["new"])
    assert answer["reshaped"] == [
        {"name": "shape", "from": {"dtype": "float32", "shape": [4]}, "to": {"dtype": "float32", "shape": [2, 2]}}
    ]
    assert answer["different"] == ["large", "step"]
    assert answer["unknown"] == ["conjugated"]


def test_for_people(aiockpt: Run, uris: list[str]) -> None:
    result = aiockpt("diff", *uris[:2])
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "- gone",
        "+ new",
        "~ shape: float32[4] became float32[2, 2]",
        "~ large: other values",
        "~ step: other values",
        "1 removed, 1 added, 3 changed, 1 the same",
    ]
    assert "pass --values" in result.stderr


def test_values(aiockpt: Run, uris: list[str]) -> None:
    answer = document(aiockpt("diff", "--values", "--json", *uris[:2]))
    assert (answer["different"], answer["unknown"], answer["same_count"]) == (["large", "step"], [], 2)
    result = aiockpt("diff", "--values", "--json", uris[0], uris[2])
    assert result.exit_code == 0
    assert document(result)["same"] is True


def test_what_is_not_known_is_no_difference(aiockpt: Run, uris: list[str]) -> None:
    result = aiockpt("diff", "--json", uris[0], uris[2])
    assert result.exit_code == 0
    answer = document(result)
    assert answer["same"] is False
    assert answer["unknown"] == ["conjugated"]


def test_a_folder(aiockpt: Run, local: Place, uris: list[str], tmp_path: Path) -> None:
    folder = local.sync_down("one", tmp_path)
    assert aiockpt("diff", uris[0], folder).exit_code == 0
    assert aiockpt("diff", "--values", uris[0], folder).exit_code == 2


def test_what_is_not_there(aiockpt: Run, local: Place, uris: list[str]) -> None:
    assert aiockpt("diff", uris[0], local.uri("none")).exit_code == 3
