"""Nothing secret is in what others get to see: logs at every level, errors and what led to them, reprs, pickles."""

from __future__ import annotations

import base64
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt.model import MiB
from aiockpt.s3reader import S3ReaderConstructor
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, failure, random_tensor, same_bits
from s3.conftest import service_models_read_once  # noqa: F401  # a fixture
from s3.telltale import told

SECRET_KEY = "the-secret-key-of-this-test"
TOKEN = "the-session-token-of-this-test"
CUSTOMER_KEY = "the-customer-s-key-of-this-test!"

CREDENTIALS = [SECRET_KEY, TOKEN, "Signature=", "X-Amz-Signature", "AWS4-HMAC-SHA256"]
CUSTOMER_KEYS = [CUSTOMER_KEY, base64.b64encode(CUSTOMER_KEY.encode()).decode()]

STATE = {"large": random_tensor((3000, 1000), torch.float32), "small": random_tensor((300,), torch.float32)}
SETTINGS: dict[str, Any] = {
    "part_size": 5 * MiB,
    "max_attempts": 3,
    "backoff_base_s": 0.001,
    "backoff_cap_s": 0.005,
    "stall_timeout_s": 0.3,
    "extra_args": {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": CUSTOMER_KEY},
}

FAULTS = [
    Fault(FaultKind.ERROR, count=None, status=403, code="SignatureDoesNotMatch"),
    Fault(FaultKind.ERROR, count=None, status=400, code="ExpiredToken"),
    Fault(FaultKind.ERROR, count=None, status=500, code="InternalError"),
    Fault(FaultKind.RESET, count=None, after_bytes=None),
    Fault(FaultKind.END_EARLY, count=None, after_bytes=100),
    Fault(FaultKind.STALL, count=None, after_bytes=None),
    Fault(FaultKind.LOST_REPLY, "UploadPart", count=None),
    Fault(FaultKind.LOST_REPLY, "CreateMultipartUpload", count=None),
    Fault(FaultKind.ERROR_IN_200, "CompleteMultipartUpload", count=None, code="InternalError"),
    Fault(FaultKind.WHOLE_OBJECT, "GetObject", count=None),
]


@pytest.fixture(autouse=True)
def credentials(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)


def assert_tells_nothing(text: str, secrets: list[str]) -> None:
    for secret in secrets:
        assert secret.lower() not in text.lower()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.operation}-{fault.code}")
def test_failures_tell_nothing(
    local: Place, local_endpoint: LocalEndpoint, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    caplog.set_level(logging.DEBUG, logger="aiockpt")
    local.save(STATE, **SETTINGS)
    local_endpoint.add_fault(fault)
    operations: list[Callable[[], Any]] = [
        lambda: local.save(STATE, "other", **SETTINGS),
        lambda: local.load(emptied(STATE), **SETTINGS),
    ]
    failed = 0
    for operation in operations:
        try:
            operation()
        except CheckpointException as error:
            failed += 1
            assert_tells_nothing(f"{error}{error!r}{told(failure(error))}", CREDENTIALS + CUSTOMER_KEYS)
    assert failed
    local_endpoint.clear_faults()
    records = [record for record in caplog.records if record.name.startswith("aiockpt")]
    assert records
    for record in records:
        trace = told(record.exc_info[1]) if record.exc_info and record.exc_info[1] else ""
        assert_tells_nothing(f"{record.getMessage()}{record.args!r}{trace}", CREDENTIALS + CUSTOMER_KEYS)


def test_what_is_kept_tells_nothing(local: Place) -> None:
    """A pickle has the customer's key, since another process could not write without it; and no credentials."""
    adapters = [
        local.writer(**SETTINGS),
        local.reader(**SETTINGS),
        local.reader(reader_constructor=S3ReaderConstructor.default(), **SETTINGS),
        local.fs(**SETTINGS),
    ]
    local.save(STATE, **SETTINGS)
    assert same_bits(local.load(emptied(STATE), **SETTINGS), STATE)
    for adapter in adapters:
        assert_tells_nothing(f"{adapter!r}{adapter!s}{vars(adapter)!r}", CREDENTIALS + CUSTOMER_KEYS)
        assert_tells_nothing(pickle.dumps(adapter).decode("latin-1"), CREDENTIALS)
    assert CUSTOMER_KEY in pickle.dumps(adapters[0]).decode("latin-1")


def test_what_is_written_tells_nothing(local: Place) -> None:
    local.save(STATE, **SETTINGS)
    for key in local.keys("ckpt/"):
        assert_tells_nothing(local.get(key).decode("latin-1"), CREDENTIALS + CUSTOMER_KEYS)
