"""Two saves at one path: the second one is made whole while the first is held at each of its requests in turn."""

from __future__ import annotations

import random

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt.blocking.store import Store
from aiockpt.config import S3ClientConfig
from aiockpt.dcp.delete import contents_of
from aiockpt.engine.standing import learn_conditions
from aiockpt.errors import IntegrityError, MetadataError, NotFound, PreconditionFailed
from aiockpt.model import ObjectId
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, failure
from dcp.gates import OWN, Writer, held_at, in_turns, loaded, options, state, store_of
from dcp.test_ranks import launch, launched

#: More requests than a save makes; the test ends with the first save that is not held.
MAX_REQUESTS = 40


def loaded_or_error(place: Place) -> int | BaseException:
    try:
        return loaded(place)
    except CheckpointException as error:
        return failure(error)


def its_objects(place: Place) -> list[str]:
    """What the checkpoint consists of."""
    store, checkpoint = Store(S3ClientConfig(**place.settings), place.server.region), ObjectId(place.bucket, "ckpt")
    found = store.run(lambda engine: contents_of(engine, checkpoint))
    return sorted([*(row.key for row in found.metadata), *found.data])


@pytest.mark.parametrize(
    ("overwrite", "heeded"),
    [(False, True), (True, True), (True, False)],
    ids=["first", "overwriting", "conditions ignored, and found out"],
)
def test_one_wins_wherever_the_other_is(
    local: Place, local_endpoint: LocalEndpoint, overwrite: bool, heeded: bool
) -> None:
    if not heeded:
        local_endpoint.add_fault(Fault(FaultKind.IGNORE_CONDITIONS, count=None))
        doomed = ObjectId(local.bucket, "doomed")
        store_of(local, OWN).run(lambda engine: learn_conditions(engine, doomed))
        local.client.delete_object(Bucket=local.bucket, Key=doomed.key)
    both: list[bool] = []
    for request in range(MAX_REQUESTS):
        if overwrite:
            local.save(state(100), **options())
        with held_at(request, local, 2 * request + 1) as (early, held):
            late = Writer(local, 2 * request + 2)
            assert late.ended(30)
        assert late.error is None
        both.append(early.error is None)
        if early.error is not None:
            assert isinstance(early.error, PreconditionFailed)
            assert local.uri("ckpt") in str(early.error)
        winner = late if request else early  # that has not yet looked what is there
        assert loaded(local) == winner.value
        assert local.uploads() == []
        there = local.keys()
        assert there == its_objects(local)
        if not held:
            break
        for key in there if not overwrite else ():
            local.client.delete_object(Bucket=local.bucket, Key=key)
    assert both[0]  # one after the other
    assert both[1:] == sorted(both[1:])  # from its commit on the early one has won, too, and was replaced
    assert both.count(False) >= 6
    assert not held


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_one_wins_in_any_order(local: Place, overwrite: bool, seed: int) -> None:
    """All have looked when the first of their objects is made to stand; three objects each."""
    rng = random.Random(seed)
    if overwrite:
        local.save(state(100, 3), **options(3))
    writers = in_turns(local, [1, 2, 3][: rng.choice([2, 2, 3])], 3, rng)
    (winner,) = (writer for writer in writers if writer.error is None)
    assert loaded(local, 3) == winner.value
    for writer in writers:
        assert writer is winner or isinstance(writer.error, PreconditionFailed)
        assert writer is winner or local.uri("ckpt") in str(writer.error)
    assert local.uploads() == []
    assert local.keys() == its_objects(local)


def test_who_has_lost_already_does_not_write_again(local: Place, local_endpoint: LocalEndpoint) -> None:
    with held_at(2, local, 1) as (early, held):  # its names are free still
        assert held
        local.save(state(2), **options())
    assert isinstance(early.error, PreconditionFailed)
    data = {record.key for record in local_endpoint.requests() if ".distcp" in record.key}
    assert data == {"ckpt/__0_0.distcp", "ckpt/__0_1.distcp"}


def test_who_loses_deletes_its_data_once(
    local: Place, local_endpoint: LocalEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """Who does not know whether an object is gone leaves it to a sweep: its name may be another's already."""
    with held_at(7, local, 1) as (early, held):  # before it commits
        assert held
        local.save(state(2), **options())
        local_endpoint.reset_stats()
        local_endpoint.add_fault(
            Fault(FaultKind.ERROR, "DeleteObject", status=500, code="InternalError", key="__0_1", count=None)
        )
    assert isinstance(early.error, PreconditionFailed)
    deleted = [record.key for record in local_endpoint.requests() if record.operation == "DeleteObject"]
    assert sorted(deleted) == ["ckpt/__0_0.distcp", "ckpt/__0_1.distcp"]
    assert "ckpt/__0_1.distcp may be left behind" in caplog.text
    assert local.keys() == sorted(["ckpt/__0_1.distcp", *its_objects(local)])


def test_of_two_jobs_of_two_ranks_one_wins(local: Place, local_endpoint: LocalEndpoint) -> None:
    """The first objects of both wait until both have looked what is there."""
    local_endpoint.add_fault(Fault(FaultKind.STALL, "PutObject", key="__0_0", count=2, after_bytes=1))
    with launched(local, 2, "save part") as job, launched(local, 2, "save part", add=1.0) as other:
        while local_endpoint.stats().faults < 2:
            assert not job[0].line.poll(0.01)
        local_endpoint.clear_faults()
        said = [[rank.said() for rank in ranks] for ranks in (job, other)]
    assert sorted(map(any, said)) == [False, True]
    for rank in next(filter(any, said)):
        assert "PreconditionFailed" in rank
        assert "another writer saved to" in rank
    assert local.keys() == its_objects(local)
    launch(local, 2, "load part", add=float(any(said[0])))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_store_that_ignores_conditions_shows_what_was_mixed(
    local: Place, local_endpoint: LocalEndpoint, overwrite: bool
) -> None:
    """Nobody can be refused there; what one overwrote of the other is an error when it is loaded, and never weights."""
    local_endpoint.add_fault(Fault(FaultKind.IGNORE_CONDITIONS, count=None))
    mixed = 0
    for request in range(MAX_REQUESTS):
        if overwrite:
            local.save(state(100), overwrite=True, **options())
        with held_at(request, local, 2 * request + 1) as (early, held):
            late = Writer(local, 2 * request + 2)
            assert late.ended(30)
        assert early.error is late.error is None
        found = loaded_or_error(local)
        assert found in {early.value, late.value} or isinstance(found, IntegrityError | MetadataError | NotFound)
        mixed += not isinstance(found, int)
        if not held:
            break
        there = local.keys()
        local.client.delete_objects(Bucket=local.bucket, Delete={"Objects": [{"Key": key} for key in there]})
    assert not held
    assert mixed < MAX_REQUESTS // 2
