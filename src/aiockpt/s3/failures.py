"""One map from what S3 (or botocore) says to aiockpt's errors, with what the user can do about it.

Foreign exceptions stop here: the rest of aiockpt sees only ``aiockpt.errors``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

import aiohttp
from botocore import exceptions as botocore_errors
from botocore.parsers import ResponseParserError

from aiockpt.errors import (
    AccessDenied,
    AiockptError,
    ConfigError,
    ConnectError,
    LocalProtocolError,
    NotFound,
    PreconditionFailed,
    ReadError,
    RemoteProtocolError,
    S3Exception,
    ServiceError,
    Throttled,
    TLSError,
    TransportTimeout,
)
from aiockpt.model import ObjectId
from aiockpt.s3.scrub import chain, scrub
from aiockpt.transport.tls import TLS_ADVICE, is_lasting
from aiockpt.wire.http1 import retry_after_s

#: The header with the service's id of a request.
REQUEST_ID = "x-amz-request-id"

#: The target of what is done before any bucket is asked for.
S3_ITSELF = ObjectId("*", "")

_NOT_FOUND = {"NoSuchKey", "NoSuchBucket", "NoSuchUpload", "NotFound", "NoSuchVersion", "404"}
_DENIED = {
    "AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidAccessKeyId", "InvalidToken", "Forbidden",
    "SignatureDoesNotMatch", "403", "401",
}  # fmt: skip
_RENEWABLE = {"ExpiredToken", "ExpiredTokenException", "RequestTimeTooSkewed", "RequestExpired"}
_PRECONDITION = {"PreconditionFailed", "ConditionalRequestConflict", "412"}
_THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "503", "429"}

_ADVICE = {
    "NoSuchBucket": "create the bucket, or check its name, the region and the endpoint URL",
    "NoSuchKey": "check the path and the bucket",
    "NotFound": "check the path and the bucket",
    "404": "check the path and the bucket",
    "InvalidAccessKeyId": "check the access key (AWS_ACCESS_KEY_ID or the profile): is it this endpoint's?",
    "SignatureDoesNotMatch": "check the secret key (AWS_SECRET_ACCESS_KEY or the profile) and the region",
    "AccessDenied": "check the credentials and the bucket's policy",
    "403": "check the credentials and the bucket's policy",
    "ExpiredToken": "renew the temporary credentials",
    "RequestTimeTooSkewed": "set this machine's clock",
    "AuthorizationHeaderMalformed": "check the region",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What the service said of a failed request."""

    status: int
    code: str
    message: str
    request_id: str = ""
    region: str = ""
    retry_after_s: float = 0.0


class WrongRegion(ServiceError):
    """The bucket lives in another region; ``region`` names it when the service does."""

    region: str = ""


def _type_of(failure: Failure) -> type[ServiceError]:  # noqa: PLR0911  # a table of conditions
    code = failure.code or str(failure.status)
    if code in _NOT_FOUND:
        return NotFound
    if code in _PRECONDITION or failure.status == 412:
        return PreconditionFailed
    if code in _THROTTLED or failure.status in {429, 503}:
        return Throttled
    if code in {"PermanentRedirect", "TemporaryRedirect"} or failure.status in {301, 307}:
        return WrongRegion
    if code == "AuthorizationHeaderMalformed" and failure.region:
        return WrongRegion
    if code in _DENIED or (failure.status in {401, 403} and code not in _RENEWABLE):
        return AccessDenied
    if failure.status == 404:
        return NotFound
    return ServiceError


def service_error(failure: Failure, action: str, target: ObjectId) -> ServiceError:
    """The typed error for a failed ``action`` (such as "GET") on ``target``."""
    said = failure.code or f"HTTP {failure.status}"
    message = f"{action} {_where(target)}: {said}"
    if failure.message and failure.message != said:
        message += f" ({failure.message.strip().rstrip('.')})"
    if advice := _ADVICE.get(failure.code or str(failure.status)):
        message += f": {advice}"
    error = _type_of(failure)(
        message,
        status=failure.status,
        code=failure.code,
        request_id=failure.request_id,
        bucket=target.bucket,
        key=target.key,
        retry_after_s=failure.retry_after_s,
    )
    if isinstance(error, WrongRegion):
        error.region = failure.region
    return error


def _where(target: ObjectId) -> str:
    if target == S3_ITSELF:
        return "S3"
    return target.uri if target.key else f"bucket {target.bucket!r}"


def attribute(error: S3Exception, action: str, target: ObjectId) -> None:
    """Have an error say what was done to which object, where it does not yet: those of connections know neither."""
    message = str(error.args[0])
    if _where(target) not in message:
        error.args = (f"{action} {_where(target)}: {message}",)
    if not error.bucket:
        error.bucket, error.key = target.bucket, target.key


@contextmanager
def answered(headers: Mapping[str, str]) -> Iterator[None]:
    """Give errors the id of the request that had been answered (with these headers) when they came."""
    try:
        yield
    except S3Exception as error:
        error.request_id = error.request_id or headers.get(REQUEST_ID, "")
        raise


def _from_client_error(exc: botocore_errors.ClientError) -> Failure:
    error = exc.response.get("Error", {})
    meta = exc.response.get("ResponseMetadata", {})
    headers = meta.get("HTTPHeaders", {})
    return Failure(
        status=int(meta.get("HTTPStatusCode", 0)),
        code=str(error.get("Code", "")),
        message=str(error.get("Message", "")),
        request_id=str(meta.get("RequestId", "")),
        region=str(error.get("Region") or headers.get("x-amz-bucket-region") or ""),
        retry_after_s=retry_after_s(headers, datetime.now(UTC)),
    )


def _translate(exc: Exception, action: str, target: ObjectId) -> AiockptError:  # noqa: PLR0911  # likewise
    where = f"{action} {_where(target)}"
    if isinstance(exc, botocore_errors.ClientError):
        return service_error(_from_client_error(exc), action, target)
    if isinstance(exc, (botocore_errors.NoCredentialsError, botocore_errors.PartialCredentialsError)):
        return ConfigError(
            f"{where}: no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile, "
            "or ask public buckets without (unsigned=True; --no-sign-request)"
        )
    if isinstance(exc, botocore_errors.SSLError):
        kind = TLSError if all(map(is_lasting, chain(exc))) else ConnectError
        return kind(f"{where}: TLS failed: {exc}; {TLS_ADVICE}")
    if isinstance(exc, (botocore_errors.ConnectTimeoutError, botocore_errors.ReadTimeoutError, TimeoutError)):
        asked = _asked(exc)
        return TransportTimeout(f"{where}: no answer{f' from {asked}' if asked else ''} in time")
    if _never_connected(exc):
        return ConnectError(f"{where}: cannot connect to {_asked(exc)}; check the endpoint URL and the network")
    if isinstance(
        exc,
        (
            botocore_errors.EndpointConnectionError,
            botocore_errors.HTTPClientError,
            botocore_errors.IncompleteReadError,
            aiohttp.ClientError,
            OSError,
        ),
    ):
        return ReadError(f"{where}: the connection broke: {exc}")
    if isinstance(exc, ResponseParserError):
        return RemoteProtocolError(f"{where}: the answer makes no sense")
    if isinstance(exc, (botocore_errors.ParamValidationError, botocore_errors.BotoCoreError)):
        return ConfigError(f"{where}: {exc}")
    return LocalProtocolError(f"{where}: {type(exc).__name__}: {exc}")


def _never_connected(exc: Exception) -> bool:
    """Whether a connection could not be made: botocore says so of those, too, that broke while they were in use."""
    if not isinstance(exc, (botocore_errors.EndpointConnectionError, botocore_errors.ProxyConnectionError)):
        return False
    return not any(
        isinstance(one, aiohttp.ClientConnectionError) and not isinstance(one, aiohttp.ClientConnectorError)
        for one in chain(exc)
    )


def _asked(exc: Exception) -> str:
    """The endpoint or proxy of a botocore error, without path and query; "" if it does not name one."""
    known = getattr(exc, "kwargs", {})
    parts = urlsplit(str(known.get("endpoint_url") or known.get("proxy_url") or ""))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else ""


@contextmanager
def translated(action: str, target: ObjectId) -> Iterator[None]:
    """Turn whatever botocore or aiohttp raises inside into aiockpt's errors, the cause kept but for its secrets.

    Errors of the store that pass are given ``action`` and ``target``, if they have none.
    """
    try:
        yield
    except S3Exception as error:
        attribute(error, action, target)
        raise
    except (AiockptError, asyncio.CancelledError):
        raise
    except Exception as exc:
        scrub(exc)
        ours = _translate(exc, action, target)
        if isinstance(ours, S3Exception):
            attribute(ours, action, target)
        raise ours from exc
