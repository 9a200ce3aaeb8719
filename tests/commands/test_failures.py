from __future__ import annotations

import pytest

from aiockpt.commands.failures import describe, exit_code
from aiockpt.errors import (
    AccessDenied,
    ChecksumMismatch,
    ConfigError,
    ConnectError,
    MetadataError,
    NotFound,
    PreconditionFailed,
    TransportTimeout,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (NotFound("x"), 3),
        (FileNotFoundError(2, "no such file", "a"), 3),
        (AccessDenied("x"), 4),
        (PermissionError(13, "not allowed", "a"), 4),
        (ConnectError("x"), 5),
        (TransportTimeout("x"), 5),
        (PreconditionFailed("x"), 5),
        (ChecksumMismatch("x"), 5),
        (MetadataError("x"), 5),
        (OSError(28, "No space left on device"), 5),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_a_failure_is_one_line() -> None:
    assert describe(ConnectError("one\n  two")) == "one two"
    assert describe(OSError()) == "OSError"
