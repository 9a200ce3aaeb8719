from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from aiockpt import errors
from aiockpt.errors import AiockptError, ConnectError, NotFound, RemoteProtocolError, S3Exception, ServiceError
from aiockpt.s3.failures import WrongRegion  # noqa: F401  # a subclass, found below

FIELDS: dict[str, Any] = {"request_id": "id", "bucket": "b", "key": "k"}


def below(cls: type[AiockptError]) -> list[type[AiockptError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in below(child))]


CLASSES = sorted(set(below(AiockptError)), key=lambda cls: cls.__name__)


def make(cls: type[AiockptError]) -> AiockptError:
    if issubclass(cls, ServiceError):
        return cls("it failed", **FIELDS, status=404, code="Code", retry_after_s=3.0)
    return cls("it failed", **FIELDS) if issubclass(cls, S3Exception) else cls("it failed")


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("through", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_every_error_survives_a_pickle_with_all_its_fields(cls: type[AiockptError], through: Any) -> None:
    error = make(cls).after(3, 1.5, "why")
    error.region = "r"  # type: ignore[attr-defined]  # a field of one class; any would do
    again = through(error)
    assert type(again) is cls
    assert again.args == error.args
    assert str(again) == str(error)
    assert (again.attempts, again.elapsed_s, again.reason) == (3, 1.5, "why")
    assert again.__dict__ == error.__dict__
    if isinstance(error, S3Exception):
        assert {name: getattr(again, name) for name in FIELDS} == FIELDS
    if isinstance(error, ServiceError):
        assert isinstance(again, ServiceError)
        assert (again.status, again.code, again.retry_after_s) == (404, "Code", 3.0)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_message_comes_as_it_is(cls: type[AiockptError]) -> None:
    error = make(cls)
    told = "request id; " if issubclass(cls, S3Exception) else ""
    alone = "it failed (request id)" if told else "it failed"
    assert str(error) == alone
    assert str(error.after(1, 9)) == alone
    assert str(error.after(4, 2.04)) == f"it failed ({told}gave up after 4 attempts in 2.0 s)"
    assert str(error.after(1, 2.04, "why")) == f"it failed ({told}gave up after 1 attempt in 2.0 s: why)"


def test_no_message() -> None:
    error = ConnectError.__new__(ConnectError)
    assert str(error) == "ConnectError"


@pytest.mark.parametrize(
    ("name", "kin"),
    [
        ("ConfigError", ValueError),
        ("WrongThreadError", RuntimeError),
        ("TargetMismatch", ValueError),
        ("TransportTimeout", TimeoutError),
        ("NotFound", FileNotFoundError),
        ("AccessDenied", PermissionError),
        ("RemoteProtocolError", S3Exception),
        ("IntegrityError", S3Exception),
        ("TransportError", S3Exception),
        ("ServiceError", S3Exception),
    ],
)
def test_errors_are_also_what_callers_catch(name: str, kin: type[BaseException]) -> None:
    assert issubclass(getattr(errors, name), kin)


def test_what_is_no_failure_of_the_store() -> None:
    for name in ("ConfigError", "ClosedError", "WrongThreadError", "MetadataError", "LocalProtocolError"):
        assert not issubclass(getattr(errors, name), S3Exception)
    assert issubclass(RemoteProtocolError, errors.ProtocolError)


def test_fields_have_defaults() -> None:
    error = NotFound("gone")
    assert (error.status, error.code, error.request_id, error.bucket, error.key) == (0, "", "", "", "")
    assert (error.attempts, error.elapsed_s, error.reason, error.retry_after_s) == (0, 0.0, "", 0.0)


def test_notes_survive_a_pickle_and_causes_do_not() -> None:
    error = ConnectError("it failed")
    error.add_note("while saving rank 3")
    error.__cause__ = OSError("not everything pickles")
    again = pickle.loads(pickle.dumps(error))
    assert again.__notes__ == ["while saving rank 3"]
    assert again.__cause__ is None
