from __future__ import annotations

import os

from commands.conftest import Run, document, lines
from dcp.checkpoints import Place


def test_in_a_bucket(aiockpt: Run, local: Place) -> None:
    answer = document(aiockpt("bench", local.uri("scratch"), "--size-gb", "0.002", "--rounds", "2", "--json"))
    assert answer["hardware"]
    assert answer["title"].endswith(local.uri("scratch"))
    assert [(row["contender"], row["variant"]) for row in answer["rows"]] == [("aiockpt", "save"), ("aiockpt", "load")]
    for row in answer["rows"]:
        for column in ("GB/s", "client CPU s/GB"):
            assert 0 < row["values"][column]["least"] <= row["values"][column]["median"]
    assert local.keys() == []


def test_on_a_local_endpoint(aiockpt: Run) -> None:
    before = dict(os.environ)
    table = lines(aiockpt("bench", "--size-gb", "0.001", "--rounds", "1"))
    assert "local endpoint;" in " ".join(table[0])
    assert [line[0] for line in table[2:]] == ["save", "load"]
    assert dict(os.environ) == before


def test_a_failure_is_one_line(aiockpt: Run, local: Place) -> None:
    result = aiockpt("bench", "s3://no-such-bucket-of-ours/x", "--size-gb", "0.001")
    assert result.exit_code == 3
    assert "NoSuchBucket" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_usage(aiockpt: Run) -> None:
    assert aiockpt("bench", "--rounds", "0").exit_code == 2
    assert aiockpt("bench", "--size-gb", "0").exit_code == 2
