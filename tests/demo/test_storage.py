from __future__ import annotations

import pytest

from aiockpt.demo.fingerprint import fingerprints
from aiockpt.demo.job import Place, Recipe
from aiockpt.demo.storage import load, save
from aiockpt.demo.training import Training
from aiockpt.testing import LocalEndpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_what_is_saved_is_loaded(
    recipe: Recipe,
    training: Training,
    local_endpoint: LocalEndpoint,
    local_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", local_endpoint.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", local_endpoint.secret_key)
    place = Place(f"s3://{local_bucket}/run", local_endpoint.region, local_endpoint.url)
    training.advance()
    written = save(training, place)
    resumed = Training(recipe, seed=77, shards=[0])
    read = load(resumed, place)
    assert fingerprints(resumed.whole_state()) == fingerprints(training.whole_state())
    state_bytes = 3 * sum(p.nbytes for p in training.model.parameters())
    assert written.objects == read.objects == 2
    assert state_bytes < written.stored_bytes == read.stored_bytes < 2 * state_bytes
    assert min(written.seconds, read.seconds) > 0
