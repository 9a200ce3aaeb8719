from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from aiockpt.blocking.store import Store
from aiockpt.blocking.upload import BlockingUpload, Staging
from aiockpt.engine.budget import ByteBudget
from aiockpt.engine.upload import OutgoingPart
from aiockpt.errors import AccessDenied, ClosedError, PreconditionFailed
from aiockpt.model import NOTHING, KiB, MiB, ObjectId
from aiockpt.s3.bulk import Payload
from aiockpt.scope import Scope
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from blocking.conftest import one_or_two_threads

At = Callable[[str], ObjectId]


def get(store: Store, source: ObjectId) -> bytes:
    return store.run(lambda engine: engine.get(source))


def put_mixed(upload: BlockingUpload, target: ObjectId, nbytes: int) -> bytes:
    """Write an object of copies, references and staged memory in turn; returns what it must hold."""
    chance = random.Random(nbytes)
    data = chance.randbytes(nbytes)
    writer = upload.object(target)
    while (start := writer.tell()) < nbytes:
        size = min(chance.choice([1, 1000, 100 * KiB, 2 * MiB]), nbytes - start)
        piece = memoryview(data)[start : start + size]
        way = chance.randrange(3)
        if way == 0:
            writer.copy_in(piece)
        elif way == 1:
            writer.refer_to(piece, data)
        else:
            writer.reserve(size)
            writer.refer_to(memoryview(bytes(piece)), None, staged_bytes=len(piece))
    writer.close()
    return data


@one_or_two_threads
@pytest.mark.parametrize("nbytes", [0, 1, 5 * MiB, 5 * MiB + 1, 13 * MiB])
def test_an_object_of_any_mixture(tight_store: Store, at: At, nbytes: int) -> None:
    with tight_store.upload() as upload:
        data = put_mixed(upload, at("mixed"), nbytes)
    assert get(tight_store, at("mixed")) == data
    assert (upload.stats.objects, upload.stats.sent_bytes) == (1, nbytes)


@one_or_two_threads
def test_several_objects(store: Store, at: At) -> None:
    with store.upload() as upload:
        written = {str(size): put_mixed(upload, at(str(size)), size) for size in (10, 6 * MiB, 7)}
    assert {key: get(store, at(key)) for key in written} == written


def test_what_will_have_parts_is_begun_before_they_are_there(
    tight_store: Store, at: At, local_endpoint: LocalEndpoint
) -> None:
    """A round trip that every part must wait for is under way while the first ones are made."""
    local_endpoint.reset_stats()
    with tight_store.upload() as upload:
        writer = upload.object(at("large"), total_bytes=13 * MiB)
        while "CreateMultipartUpload" not in local_endpoint.stats().requests:  # or the test's time runs out
            pass
        writer.copy_in(bytes(13 * MiB))
        writer.close()
    assert local_endpoint.stats().requests == {
        "CreateMultipartUpload": 1,
        "UploadPart": 3,
        "CompleteMultipartUpload": 1,
    }
    assert get(tight_store, at("large")) == bytes(13 * MiB)


def test_what_turns_out_smaller_than_it_was_said_to_be_is_written_all_the_same(tight_store: Store, at: At) -> None:
    with tight_store.upload() as upload:
        writer = upload.object(at("small"), total_bytes=13 * MiB)
        writer.copy_in(b"small")
        writer.close()
    assert get(tight_store, at("small")) == b"small"


def test_what_was_begun_and_is_given_up_before_its_first_part_is_aborted(
    tight_store: Store, at: At, local_endpoint: LocalEndpoint
) -> None:
    with tight_store.upload() as upload:
        upload.object(at("never"), total_bytes=13 * MiB).discard()
    assert local_endpoint.stats().uploads_open == 0
    assert not tight_store.exists(at("never"))


def test_what_it_may_replace(store: Store, at: At) -> None:
    store.put(at("a"), b"first")
    with pytest.raises(PreconditionFailed), store.upload() as upload:
        writer = upload.object(at("a"), NOTHING)
        writer.copy_in(b"second")
        writer.close()
    assert store.get_small(at("a")) == b"first"


def test_a_failure_surfaces_while_writing(tight_store: Store, at: At, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "UploadPart", count=None, status=403, code="AccessDenied"))
    with pytest.raises(AccessDenied), tight_store.upload() as upload:
        writer = upload.object(at("a"))
        while True:
            writer.copy_in(bytes(MiB))
    assert not tight_store.exists(at("a"))
    assert local_endpoint.stats().uploads_open == 0


@one_or_two_threads
def test_failures_leave_nothing_of_the_budget_behind(tight_store: Store, at: At, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "PutObject", key="refused", status=403, code="AccessDenied"))
    with pytest.raises(AccessDenied), tight_store.upload() as upload:
        other = upload.object(at("other"))
        other.copy_in(bytes(6 * MiB))
        refused = upload.object(at("refused"))
        refused.copy_in(b"1")
        refused.close()
        assert upload._call.wait(20)
        other.discard()
        for _ in range(3):
            with pytest.raises(AccessDenied):
                other.reserve(MiB)
        with pytest.raises(AccessDenied):
            other.copy_in(bytes(6 * MiB))


@one_or_two_threads
def test_leaving_by_an_exception_aborts(store: Store, at: At, local_endpoint: LocalEndpoint) -> None:
    with pytest.raises(KeyError, match="mine"), store.upload() as upload:
        whole = upload.object(at("closed"))
        whole.copy_in(bytes(11 * MiB))
        partial = upload.object(at("partial"))
        partial.copy_in(bytes(11 * MiB))
        raise KeyError("mine")
    assert not store.exists(at("closed"))
    assert not store.exists(at("partial"))
    assert local_endpoint.stats().uploads_open == 0


def test_leaving_at_once_gives_the_budget_back(store: Store, at: At) -> None:
    with store.lease() as lease:
        for _ in range(20):  # the call may be cancelled before it has begun
            with pytest.raises(KeyError), store.upload() as upload:
                upload.object(at("a")).copy_in(b"1")
                raise KeyError
            assert lease.engine.budget.reserved_bytes == 0


@pytest.mark.parametrize("nbytes", [0, 100, 6 * MiB, 16 * MiB])
def test_discarding_one_of_two(store: Store, at: At, local_endpoint: LocalEndpoint, nbytes: int) -> None:
    with store.upload() as upload:
        unwanted, wanted = upload.object(at("unwanted")), upload.object(at("wanted"))
        unwanted.copy_in(bytes(nbytes))
        unwanted.discard()
        wanted.copy_in(b"1")
        wanted.close()
    assert store.exists(at("wanted"))
    assert not store.exists(at("unwanted"))
    assert local_endpoint.stats().uploads_open == 0


@one_or_two_threads
def test_many_threads_and_a_small_budget(tight_store: Store, at: At) -> None:
    def save(number: int) -> bytes:
        with tight_store.upload() as upload:
            return put_mixed(upload, at(str(number)), 11 * MiB + number)

    with ThreadPoolExecutor(4) as threads:
        written = list(threads.map(save, range(4)))
    for number, data in enumerate(written):
        assert get(tight_store, at(str(number))) == data


def test_one_thread_with_objects_open_in_many_uploads(tight_store: Store, at: At) -> None:
    """None of them may wait for what the others keep: it is for the same thread to go on with those."""
    written = []
    for number in range(4):
        upload = tight_store.upload()
        written.append((upload, upload.__enter__().object(at(str(number)))))
    for _ in range(3):
        for _, writer in written:
            writer.copy_in(bytes(2 * MiB))
    for upload, writer in written:
        writer.close()
        upload.__exit__(None, None, None)
    assert [tight_store.head(at(str(number))).size for number in range(4)] == [6 * MiB] * 4


def part(staged_bytes: int) -> OutgoingPart:
    return OutgoingPart(1, Payload((), 0, 0), staged_bytes=staged_bytes)


def test_staging_waits_for_parts_under_way() -> None:
    budget = ByteBudget(10)
    staging = Staging(budget)
    staging.reserve(10)
    staging.submitted(part(10))
    waiting = threading.Thread(target=staging.reserve, args=(7,))
    waiting.start()
    assert budget.reserved_bytes == 10
    staging.sent(part(10))
    waiting.join(10)
    assert budget.reserved_bytes == 7
    staging.end()
    assert budget.reserved_bytes == 0
    assert budget.peak_bytes == 10


def test_staging_waits_for_nobody_else() -> None:
    budget = ByteBudget(10)
    assert budget.try_reserve(10)
    staging = Staging(budget)
    staging.reserve(3)
    staging.reserve(4)
    assert budget.reserved_bytes == 17


def test_staging_that_has_ended() -> None:
    budget = ByteBudget(10)
    staging = Staging(budget)
    staging.reserve(10)
    staging.submitted(part(10))
    waiting = threading.Thread(target=staging.reserve, args=(7,))
    waiting.start()
    staging.end()
    waiting.join(10)
    staging.sent(part(10))
    staging.reserve(3)
    staging.end()
    assert budget.reserved_bytes == 0


@one_or_two_threads
def test_a_scope_ends_an_upload(tight_store: Store, at: At, local_endpoint: LocalEndpoint) -> None:
    """From another thread, while this one waits for staging memory: the uploads are aborted."""
    local_endpoint.add_fault(Fault(FaultKind.STALL, "UploadPart", count=None, after_bytes=1000))
    scope = Scope()

    def cancel_later() -> None:
        while local_endpoint.stats().uploads_open == 0:
            threading.Event().wait(0.001)
        scope.cancel()

    canceller = threading.Thread(target=cancel_later)
    canceller.start()
    with scope.entered(), pytest.raises(ClosedError), tight_store.upload() as upload:
        writer = upload.object(at("a"))
        while True:
            writer.copy_in(bytes(MiB))
    canceller.join()
    assert scope.is_idle
    assert local_endpoint.stats().uploads_open == 0
