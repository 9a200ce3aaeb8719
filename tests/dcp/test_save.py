"""What a save sends, counted by the local endpoint; for its failures see test_storage_writer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import SerializationFormat

from aiockpt.dcp.save import _standalone
from aiockpt.model import KiB, MiB
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, nbytes_of, random_tensor, same_bits

STATE = {f"w{n}": random_tensor((1024, 1500), torch.float32, n) for n in range(4)}


@pytest.mark.parametrize("form", SerializationFormat)
def test_every_byte_is_sent_once_in_parts_of_one_size(
    local: Place, local_endpoint: LocalEndpoint, form: SerializationFormat
) -> None:
    local.save(STATE, serialization_format=form, part_size=5 * MiB)
    assert local_endpoint.stats().body_bytes_in <= 1.01 * nbytes_of(STATE)
    parts = [r for r in local_endpoint.requests() if r.operation == "UploadPart"]
    sizes = [part.body_bytes_in for part in sorted(parts, key=lambda part: part.part_number)]
    assert len(set(sizes[:-1])) == 1
    assert sizes[-1] <= sizes[0]


def test_a_small_checkpoint_is_two_puts_and_a_look(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save({"w": torch.ones(30, 30), "step": 3})
    requests = local_endpoint.stats().requests
    assert requests["PutObject"] == 2
    assert "CreateMultipartUpload" not in requests
    assert local_endpoint.stats().requests_total <= 4


def test_many_small_tensors_take_few_requests(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save({f"w{n}": torch.full((20,), float(n)) for n in range(2000)})
    assert local_endpoint.stats().requests_total <= 6


def test_views_leave_the_rest_of_their_storage_behind(local: Place, local_endpoint: LocalEndpoint) -> None:
    large = torch.randn(1000, 1000)
    local.save({"rows": large[:10], "columns": large[:, :10], "q": large[0]})
    assert local_endpoint.stats().body_bytes_in < 100 * KiB


@pytest.mark.parametrize(
    "tensor", [torch.randn(10, 10)[2:4], torch.randn(10, 10)[:, 2:4], torch.randn(10, 10), torch.randn(5).conj()]
)
def test_standalone_tensors_have_storage_of_their_own_size(tensor: torch.Tensor) -> None:
    alone = _standalone(tensor)
    assert torch.equal(alone, tensor)
    assert alone.untyped_storage().nbytes() == tensor.nbytes


@contextmanager
def held_survey(endpoint: LocalEndpoint) -> Iterator[None]:
    """While the block runs, nobody gets an answer to a listing."""
    endpoint.add_fault(Fault(FaultKind.STALL, "ListObjectsV2", after_bytes=None, count=None))
    try:
        yield
    finally:
        endpoint.clear_faults()


def wait_for(operation: str, endpoint: LocalEndpoint) -> None:
    """Until a request has come (or the test's time runs out)."""
    while operation not in endpoint.stats().requests:
        pass


def test_the_first_upload_is_begun_beside_the_look_at_the_path(local: Place, local_endpoint: LocalEndpoint) -> None:
    """Parts wait for both round trips, so these must not wait for one another. Nothing is sent on a guess."""
    local_endpoint.reset_stats()
    with ThreadPoolExecutor(1) as pool:
        with held_survey(local_endpoint):
            saving = pool.submit(local.save, STATE, part_size=5 * MiB)
            wait_for("CreateMultipartUpload", local_endpoint)
            local.uploads()  # a round trip, in which what would follow could follow
            assert "UploadPart" not in local_endpoint.stats().requests
        saving.result(30)
    assert local_endpoint.stats().requests["CreateMultipartUpload"] == 1
    assert "AbortMultipartUpload" not in local_endpoint.stats().requests
    assert local.keys("ckpt/") == ["ckpt/.metadata", "ckpt/__0_0.distcp"]


def test_what_was_begun_by_a_name_that_is_taken_is_dropped(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.put("ckpt/__0_4.distcp", b"another's")
    with ThreadPoolExecutor(1) as pool:
        with held_survey(local_endpoint):
            saving = pool.submit(local.save, STATE, part_size=5 * MiB)
            wait_for("CreateMultipartUpload", local_endpoint)
        saving.result(30)
    requests = local_endpoint.stats().requests
    assert (requests["CreateMultipartUpload"], requests["AbortMultipartUpload"]) == (2, 1)
    assert local.keys("ckpt/") == ["ckpt/.metadata", "ckpt/__0_4.distcp", "ckpt/__0_5.distcp"]
    assert local.get("ckpt/__0_4.distcp") == b"another's"
    assert local.uploads() == []
    assert same_bits(local.load(emptied(STATE)), STATE)


def test_a_path_that_is_overwritten_again_and_again_is_guessed_right(
    local: Place, local_endpoint: LocalEndpoint
) -> None:
    for number in range(3):
        local_endpoint.reset_stats()
        with ThreadPoolExecutor(1) as pool:
            with held_survey(local_endpoint):
                saving = pool.submit(local.save, STATE, part_size=5 * MiB, overwrite=True)
                wait_for("CreateMultipartUpload", local_endpoint)
            saving.result(30)
        requests = local_endpoint.stats().requests
        assert (requests["CreateMultipartUpload"], requests.get("AbortMultipartUpload", 0)) == (1, 0)
        assert local.keys("ckpt/") == ["ckpt/.metadata", f"ckpt/__0_{number}.distcp"]


def test_a_path_that_cannot_be_looked_at_leaves_no_upload(local: Place, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "ListObjectsV2", status=403, code="AccessDenied", count=None))
    with pytest.raises(CheckpointException, match="AccessDenied"):
        local.save(STATE, part_size=5 * MiB)
    local_endpoint.clear_faults()
    assert local.uploads() == []
    assert local.keys() == []
