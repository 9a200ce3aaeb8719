"""How this room says "not what I know": the caller then takes the buffered, slower, always right path.

A `Surprise` is no verdict on the bytes: they may be corrupt, or merely of a kind that this room does not
read.
"""

from __future__ import annotations

from typing import Any

from aiockpt.errors import AiockptError


class Surprise(AiockptError):
    """Bytes that are not of a layout that this room reads; nothing was concluded from them."""


class StridedPayload(Surprise):
    """An item that is well understood, but whose payload is not in row-major order.

    Attributes:
        stride: the stored tensor's strides, in elements.
        crc32: the CRC32 recorded for the payload; None if none was recorded.
    """

    def __init__(self, message: str, stride: tuple[int, ...] = (), crc32: int | None = None) -> None:
        super().__init__(message)
        self.stride = stride
        self.crc32 = crc32


def require(condition: Any, what: str) -> None:
    """Raise `Surprise` with *what* unless *condition* holds; *what* never quotes untrusted bytes."""
    if not condition:
        raise Surprise(what)
