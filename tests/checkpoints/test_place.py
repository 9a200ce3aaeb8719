from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from aiockpt import BlockingCheckpoints, Checkpoints, S3ClientConfig
from aiockpt.errors import ConfigError


@pytest.mark.parametrize("face", [Checkpoints, BlockingCheckpoints])
@pytest.mark.parametrize("uri", ["s3://bucket/run", "s3://bucket/run/", Path("s3://bucket/run")])
def test_paths(face: type[Checkpoints | BlockingCheckpoints], uri: str) -> None:
    run = face(uri, region="us-east-1", endpoint_url="http://nowhere", config=S3ClientConfig(max_attempts=3))
    assert run.uri == "s3://bucket/run"
    assert run.path(1000) == "s3://bucket/run/step-00001000"
    writer = run.writer(7, thread_count=3)
    reader = run.reader(7)
    assert (writer.path, reader.path, writer.thread_count) == (run.path(7), run.path(7), 3)
    for adapter in (writer, reader):
        config = adapter.fs.store.config  # type: ignore[attr-defined]
        assert (config.endpoint_url, config.max_attempts) == ("http://nowhere", 3)
    assert run.is_coordinator
    assert pickle.loads(pickle.dumps(run)).path(1) == run.path(1)


def test_other_names_and_types() -> None:
    run = Checkpoints("s3://bucket", name="checkpoint-{}", allowed_metadata_types=[Path])
    assert run.path(12) == "s3://bucket/checkpoint-12"
    assert run.reader(1)._allowed_metadata_types == (Path,)
    assert run.reader(1, allowed_metadata_types=[])._allowed_metadata_types == ()


@pytest.mark.parametrize(
    ("uri", "wrong", "error"),
    [
        ("/tmp/run", {}, ConfigError),
        ("s3:///run", {}, ConfigError),
        (7, {}, ConfigError),
        ("s3://b/run", {"keep_last": 0}, ConfigError),
        ("s3://b/run", {"name": "x"}, ConfigError),
        ("s3://b/run", {"keep_lats": 1}, TypeError),
    ],
)
def test_settings_that_cannot_work(uri: Any, wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Checkpoints(uri, **wrong)
