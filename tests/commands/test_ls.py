from __future__ import annotations

import torch

from commands.conftest import Run, document, lines
from dcp.checkpoints import Place

STATE = {"w": torch.ones(300, 10), "b": torch.ones(3), "step": 5}


def test_checkpoints_of_a_run(aiockpt: Run, local: Place) -> None:
    local.save(STATE, "run/step-10")
    local.save(STATE, "run/step-9")
    local.put("run/step-11/__0_0.distcp", b"half")
    local.put("run/step-12/.metadata", b"junk")
    answer = document(aiockpt("ls", "--json", local.uri("run")))
    assert answer["uri"] == local.uri("run")
    facts = [(one["uri"], one["complete"], one["step"], one["tensors"]) for one in answer["checkpoints"]]
    assert facts == [
        (local.uri("run/step-9"), True, 9, 2),
        (local.uri("run/step-10"), True, 10, 2),
        (local.uri("run/step-11"), False, 11, None),
        (local.uri("run/step-12"), True, 12, None),
    ]
    whole, broken = answer["checkpoints"][1], answer["checkpoints"][3]
    stored = sum(len(local.get(key)) for key in local.keys("run/step-10/"))
    assert (whole["nbytes"], whole["objects"], whole["ranks"], whole["problem"]) == (stored, 1, 1, None)
    assert broken["problem"].startswith(local.uri("run/step-12/.metadata"))

    result = aiockpt("ls", local.uri("run"))
    table = lines(result)
    assert table[0] == ["checkpoint", "complete", "step", "age", "size", "ranks", "tensors"]
    assert table[2][:3] == [local.uri("run/step-10"), "yes", "10"]
    assert table[3][1] == "no"
    assert table[4][1] == "damaged"
    assert "step-12: s3://" in result.stderr


def test_without_reading_metadata(aiockpt: Run, local: Place) -> None:
    local.put("run/1/.metadata", b"junk")
    (only,) = document(aiockpt("ls", "--fast", "--json", local.uri("run")))["checkpoints"]
    assert (only["complete"], only["tensors"], only["problem"]) == (True, None, None)


def test_a_prefix_is_a_folder(aiockpt: Run, local: Place) -> None:
    local.save(STATE, "run-2/step-1")
    result = aiockpt("ls", local.uri("run"))
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == f"Error: there are no checkpoints below {local.uri('run')}\n"


def test_a_whole_bucket(aiockpt: Run, local: Place) -> None:
    local.save(STATE, "a/b/c")
    answer = document(aiockpt("ls", "--json", local.uri()))
    assert [one["uri"] for one in answer["checkpoints"]] == [local.uri("a/b/c")]
