from __future__ import annotations

import asyncio
import pickle
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from botocore import exceptions as botocore_errors
from botocore.parsers import ResponseParserError

from aiockpt.errors import (
    AccessDenied,
    ConfigError,
    ConnectError,
    LocalProtocolError,
    NotFound,
    PreconditionFailed,
    ReadError,
    RemoteProtocolError,
    ServiceError,
    Throttled,
    TLSError,
    TransportTimeout,
)
from aiockpt.model import ObjectId
from aiockpt.s3.failures import S3_ITSELF, Failure, WrongRegion, service_error, translated

TARGET = ObjectId("bucket", "key")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", NotFound),
        (404, "NoSuchBucket", NotFound),
        (404, "NoSuchUpload", NotFound),
        (404, "", NotFound),
        (404, "Weird", NotFound),
        (403, "AccessDenied", AccessDenied),
        (403, "InvalidAccessKeyId", AccessDenied),
        (403, "SignatureDoesNotMatch", AccessDenied),
        (403, "", AccessDenied),
        (401, "", AccessDenied),
        (400, "ExpiredToken", ServiceError),
        (403, "ExpiredToken", ServiceError),
        (403, "RequestTimeTooSkewed", ServiceError),
        (412, "PreconditionFailed", PreconditionFailed),
        (412, "", PreconditionFailed),
        (409, "ConditionalRequestConflict", PreconditionFailed),
        (409, "BucketAlreadyExists", ServiceError),
        (503, "SlowDown", Throttled),
        (503, "", Throttled),
        (429, "", Throttled),
        (400, "RequestLimitExceeded", Throttled),
        (500, "InternalError", ServiceError),
        (301, "PermanentRedirect", WrongRegion),
        (307, "", WrongRegion),
        (301, "", WrongRegion),
        (416, "InvalidRange", ServiceError),
    ],
)
def test_what_the_service_says(status: int, code: str, kind: type[ServiceError]) -> None:
    error = service_error(Failure(status, code, "Because.", "id"), "GET", TARGET)
    assert type(error) is kind
    assert (error.status, error.code, error.request_id, error.bucket, error.key) == (
        status,
        code,
        "id",
        "bucket",
        "key",
    )
    assert str(error).startswith(f"GET s3://bucket/key: {code or f'HTTP {status}'} (Because)")


def test_a_wrong_region_in_a_signature() -> None:
    failure = Failure(400, "AuthorizationHeaderMalformed", "", region="eu-west-3")
    error = service_error(failure, "GET", TARGET)
    assert isinstance(error, WrongRegion)
    assert error.region == "eu-west-3"
    assert pickle.loads(pickle.dumps(error)).region == "eu-west-3"
    unnamed = service_error(Failure(400, "AuthorizationHeaderMalformed", ""), "GET", TARGET)
    assert type(unnamed) is ServiceError


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("NoSuchBucket", "create the bucket"),
        ("NoSuchKey", "check the path"),
        ("InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        ("ExpiredToken", "renew"),
    ],
)
def test_advice(code: str, advice: str) -> None:
    assert advice in str(service_error(Failure(400, code, ""), "GET", TARGET))


def test_a_bucket() -> None:
    error = service_error(Failure(404, "NoSuchBucket", "The bucket"), "LIST", ObjectId("bucket", ""))
    assert str(error).startswith("LIST bucket 'bucket': NoSuchBucket (The bucket): ")


def client_error(code: str, status: int, **error: Any) -> botocore_errors.ClientError:
    meta = {"HTTPStatusCode": status, "RequestId": "id", "HTTPHeaders": {"x-amz-bucket-region": "eu-west-3"}}
    return botocore_errors.ClientError({"Error": {"Code": code, **error}, "ResponseMetadata": meta}, "Operation")


@pytest.mark.parametrize(
    ("foreign", "kind"),
    [
        (client_error("NoSuchKey", 404), NotFound),
        (client_error("404", 404), NotFound),
        (client_error("403", 403), AccessDenied),
        (client_error("SlowDown", 503), Throttled),
        (client_error("PermanentRedirect", 301), WrongRegion),
        (botocore_errors.NoCredentialsError(), ConfigError),
        (botocore_errors.PartialCredentialsError(provider="p", cred_var="v"), ConfigError),
        (botocore_errors.ProfileNotFound(profile="p"), ConfigError),
        (botocore_errors.ParamValidationError(report="r"), ConfigError),
        (botocore_errors.SSLError(endpoint_url="u", error="e"), TLSError),
        (botocore_errors.EndpointConnectionError(endpoint_url="u"), ConnectError),
        (botocore_errors.ProxyConnectionError(proxy_url="u"), ConnectError),
        (botocore_errors.ConnectTimeoutError(endpoint_url="u"), TransportTimeout),
        (botocore_errors.ReadTimeoutError(endpoint_url="u"), TransportTimeout),
        (TimeoutError(), TransportTimeout),
        (botocore_errors.ConnectionClosedError(endpoint_url="u"), ReadError),
        (botocore_errors.ResponseStreamingError(error="e"), ReadError),
        (botocore_errors.IncompleteReadError(actual_bytes=1, expected_bytes=2), ReadError),
        (aiohttp.ClientPayloadError("e"), ReadError),
        (ConnectionResetError("e"), ReadError),
        (ResponseParserError("e"), RemoteProtocolError),
        (LookupError("e"), LocalProtocolError),
    ],
)
def test_foreign_exceptions_stop_here(foreign: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as failure, translated("HEAD", TARGET):
        raise foreign
    assert type(failure.value) is kind
    assert failure.value.__cause__ is foreign
    assert "s3://bucket/key" in str(failure.value)


@pytest.mark.parametrize("own", [NotFound("gone"), asyncio.CancelledError(), KeyboardInterrupt()])
def test_what_passes_untouched(own: BaseException) -> None:
    with pytest.raises(type(own)) as failure, translated("HEAD", TARGET):
        raise own
    assert failure.value is own


def test_what_could_not_be_connected_to_is_named_without_the_request() -> None:
    url = "http://me:secret@127.0.0.1:1/bucket?list-type=2&prefix=run%2F"
    for foreign in (
        botocore_errors.EndpointConnectionError(endpoint_url=url),
        botocore_errors.ProxyConnectionError(proxy_url=url),
    ):
        with pytest.raises(ConnectError) as failure, translated("LIST", TARGET):
            raise foreign
        assert str(failure.value) == (
            "LIST s3://bucket/key: cannot connect to http://127.0.0.1:1; check the endpoint URL and the network"
        )


@pytest.mark.parametrize("kind", [botocore_errors.ConnectTimeoutError, botocore_errors.ReadTimeoutError])
def test_who_gave_no_answer_is_named_without_the_request(kind: type[botocore_errors.HTTPClientError]) -> None:
    with pytest.raises(TransportTimeout) as failure, translated("HEAD", TARGET):
        raise kind(endpoint_url="https://me:secret@s3.example.com/bucket?list-type=2")
    assert str(failure.value) == "HEAD s3://bucket/key: no answer from https://s3.example.com in time"
    with pytest.raises(TransportTimeout) as failure, translated("HEAD", TARGET):
        raise TimeoutError
    assert str(failure.value) == "HEAD s3://bucket/key: no answer in time"


def test_what_is_no_buckets_matter_names_none() -> None:
    with pytest.raises(ConfigError) as failure, translated("building a client for", S3_ITSELF):
        raise botocore_errors.ProfileNotFound(profile="p")
    assert str(failure.value) == "building a client for S3: The config profile (p) could not be found"


_WHERE = ConnectionKey(
    host="h", port=1, is_ssl=True, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None, server_hostname=None
)
REFUSED = aiohttp.ClientConnectorError(_WHERE, OSError(111, "refused"))


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (aiohttp.ClientOSError(104, "Connection reset by peer"), ReadError),  # the request may have been performed
        (aiohttp.ServerDisconnectedError(), ReadError),
        (REFUSED, ConnectError),
    ],
)
def test_a_connection_that_broke_was_made(cause: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as failure, translated("HEAD", TARGET):
        try:
            raise cause
        except aiohttp.ClientError as error:
            raise botocore_errors.EndpointConnectionError(endpoint_url="u", error=error)  # noqa: B904  # as it does
    assert type(failure.value) is kind
