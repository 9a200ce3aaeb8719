from __future__ import annotations

import pytest
import torch

from commands.conftest import Run, document, lines
from dcp.checkpoints import Place


@pytest.fixture
def uri(local: Place) -> str:
    local.save({"w": torch.ones(3)}, "run/step-1")
    local.put("run/step-1/__7_0.distcp", b"12345")
    local.client.create_multipart_upload(Bucket=local.bucket, Key="run/step-2/__0_0.distcp")
    return local.uri("run")


def test_a_dry_run_unless_told(aiockpt: Run, local: Place, uri: str) -> None:
    answer = document(aiockpt("sweep", uri, "--grace-hours", "0", "--json"))
    assert answer["dry_run"] is True
    assert [one["key"] for one in answer["removed"]] == ["run/step-1/__7_0.distcp", "run/step-2/__0_0.distcp"]
    assert answer["nbytes"] == 5
    assert answer["removed"][0]["upload_id"] is None
    assert answer["removed"][1]["upload_id"]
    assert len(local.keys()) == 3
    assert len(local.uploads()) == 1


def test_removal(aiockpt: Run, local: Place, uri: str) -> None:
    table = lines(aiockpt("sweep", uri, "--grace-hours", "0", "--delete"))
    assert table[1][:4] == ["run/step-1/__7_0.distcp", "5", "B", "removed"]
    assert table[3] == ["2", "remnants,", "5", "B", "removed"]
    assert local.keys() == ["run/step-1/.metadata", "run/step-1/__0_0.distcp"]
    assert local.uploads() == []


def test_what_may_be_a_running_saves_stays(aiockpt: Run, local: Place, uri: str) -> None:
    answer = document(aiockpt("sweep", uri, "--delete", "--json"))
    assert answer["removed"] == []
    assert "a writer may be at work" in answer["kept"][0]["reason"]
    assert len(local.keys()) == 3


def test_nothing_to_do(aiockpt: Run, local: Place) -> None:
    assert aiockpt("sweep", local.uri("none")).stdout == "0 remnants, 0 B to remove with --delete\n"


def test_a_negative_grace_is_a_usage_error(aiockpt: Run, uri: str) -> None:
    assert aiockpt("sweep", uri, "--grace-hours", "-1").exit_code == 2
