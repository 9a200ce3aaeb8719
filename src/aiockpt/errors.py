"""The error taxonomy: every failure that aiockpt raises has a type and a place in this tree.

One job: name failures. It knows nothing about HTTP, S3 or torch. Every class here pickles with its fields (DCP gathers
exceptions across ranks), and no message here ever holds a credential, a signed URL or a request header.

    AiockptError
    ├ ConfigError (ValueError)          a setting that cannot work
    ├ ClosedError                       used after close
    ├ WrongThreadError (RuntimeError)   a blocking call from the thread that would have to serve it
    ├ MetadataError                     a checkpoint's .metadata that is refused or makes no sense
    ├ TargetMismatch (ValueError)       the tensor to fill does not fit what is stored
    ├ RankFailed                        another rank of the same save or load failed
    ├ ProtocolError
    │   ├ LocalProtocolError            a bug of ours
    │   └ RemoteProtocolError           the server broke HTTP or S3 (also S3Exception)
    └ S3Exception                       whatever goes wrong between us and the store
        ├ TransportError: ConnectError (TLSError) | ReadError | WriteError | TransportTimeout (TimeoutError)
        ├ ServiceError: NotFound (FileNotFoundError) | AccessDenied (PermissionError) | PreconditionFailed | Throttled
        └ IntegrityError: ShortRead | ChecksumMismatch | ObjectChanged
"""

from __future__ import annotations

from typing import Any, Self


def _rebuild(cls: type[AiockptError], args: tuple[Any, ...], state: dict[str, Any]) -> AiockptError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class AiockptError(Exception):
    """Base of everything that aiockpt raises on purpose.

    Attributes:
        attempts: how many times the operation was tried (0: not counted).
        elapsed_s: seconds from the first try to the last failure.
        reason: why no further try was made, where that is not the number of attempts; ``""``.
    """

    attempts: int = 0
    elapsed_s: float = 0.0
    reason: str = ""

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def after(self, attempts: int, elapsed_s: float, reason: str = "") -> Self:
        """Note how often and for how long the operation was tried, and why it ended; returns self."""
        self.attempts = attempts
        self.elapsed_s = elapsed_s
        self.reason = reason
        return self

    def __str__(self) -> str:
        message = str(self.args[0]) if self.args else type(self).__name__
        facts = "; ".join(self._facts())
        return f"{message} ({facts})" if facts else message

    def _facts(self) -> list[str]:
        """What is told behind the message."""
        if self.attempts < 2 and not self.reason:
            return []
        tries = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        return [f"gave up after {tries} in {self.elapsed_s:.1f} s{self.reason and ': '}{self.reason}"]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class ConfigError(AiockptError, ValueError):
    """A setting that cannot work; the message says which, and what would."""


class ClosedError(AiockptError):
    """An engine, stream or bridge was used after it was closed."""


class WrongThreadError(AiockptError, RuntimeError):
    """A blocking call from the loop thread itself, which would wait for itself for ever."""


class MetadataError(AiockptError):
    """A checkpoint's ``.metadata`` that is refused (it could run code) or contradicts the objects it names."""


class TargetMismatch(AiockptError, ValueError):
    """The tensor to be filled does not fit the stored one."""


class RankFailed(AiockptError):
    """Another rank of the same save or load failed, so this one stopped; the message says which, and of what."""


class ProtocolError(AiockptError):
    """HTTP or S3 rules were broken."""


class LocalProtocolError(ProtocolError):
    """We broke the rules: a bug in aiockpt, worth reporting."""


class S3Exception(AiockptError):
    """Base of what goes wrong between us and the store: what callers catch for service failures.

    Attributes:
        bucket, key: what was asked for; ``key`` is ``""`` for operations on a bucket.
        request_id: the service's id of the request, for its support; ``""`` if it did not answer.
    """

    bucket: str = ""
    key: str = ""
    request_id: str = ""

    def __init__(self, message: str, *, bucket: str = "", key: str = "", request_id: str = "") -> None:
        super().__init__(message)
        self.bucket = bucket
        self.key = key
        self.request_id = request_id

    def _facts(self) -> list[str]:
        return [f"request {self.request_id}"] * bool(self.request_id) + super()._facts()


class RemoteProtocolError(ProtocolError, S3Exception):
    """The server (or something between) broke HTTP or S3 rules."""


class TransportError(S3Exception):
    """The connection failed."""


class ConnectError(TransportError):
    """No connection could be made: name resolution, refusal, TLS."""


class TLSError(ConnectError):
    """The server's certificate is not trusted, or it does not speak TLS: no further try would change that."""


class ReadError(TransportError):
    """The connection broke while a response was awaited or received."""


class WriteError(TransportError):
    """The connection broke while a request was sent."""


class TransportTimeout(TransportError, TimeoutError):
    """Nothing moved for longer than the configured limit, or a try or operation took longer than its own."""


class ServiceError(S3Exception):
    """The service answered with an error.

    Attributes:
        status: HTTP status code.
        code: S3's error code, e.g. ``NoSuchKey``; ``""`` if the answer had none.
        retry_after_s: seconds that the service asks to be left alone for (``Retry-After``); 0: it does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        request_id: str = "",
        bucket: str = "",
        key: str = "",
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message, bucket=bucket, key=key, request_id=request_id)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class NotFound(ServiceError, FileNotFoundError):
    """The object, upload or bucket does not exist."""


class AccessDenied(ServiceError, PermissionError):
    """The service refuses these credentials, or this action to them."""


class PreconditionFailed(ServiceError):
    """``If-Match`` or ``If-None-Match`` did not hold (412, or 409 in a race)."""


class Throttled(ServiceError):
    """The service asks to slow down (503 SlowDown, 429)."""


class IntegrityError(S3Exception):
    """Bytes are not what they should be."""


class ShortRead(IntegrityError):
    """Fewer bytes than the object or range holds."""


class ChecksumMismatch(IntegrityError):
    """A checksum does not match the bytes.

    Attributes:
        came: the CRC32 of the bytes that came, of a whole object; else None.
        at_rest: they are stored like that: fetched again, they came the same.
    """

    came: int | None = None
    at_rest: bool = False


class ObjectChanged(IntegrityError):
    """The object was replaced while it was being read."""
