from __future__ import annotations

from typing import Any

import botocore.session
import pytest

from aiockpt.s3.completion import complete_by_document

PARTS = [(1, '"0123456789abcdef0123456789abcdef"'), (2, "bare"), (10_000, '"odd & <quoted> ü"')]


class Sent(Exception):  # what ends a call before it needs a network
    """A request is ready to be sent."""

    def __init__(self, request: Any) -> None:
        super().__init__()
        self.request = request


def request_of(client: Any, parts: Any) -> Any:
    """The request that a completion of ``parts`` would send."""

    def stop(request: Any, **_: Any) -> None:
        raise Sent(request)

    client.meta.events.register("before-send.s3", stop)
    with pytest.raises(Sent) as sent:
        client.complete_multipart_upload(
            Bucket="b", Key="k", UploadId="id", MultipartUpload=parts, ChecksumCRC32="AAAAAA==", IfNoneMatch="*"
        )
    return sent.value.request


def new_client() -> Any:
    return botocore.session.get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url="http://127.0.0.1:9",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )


@pytest.mark.parametrize("parts", [PARTS, PARTS[:1]])
def test_the_request_is_botocores_own(parts: list[tuple[int, str]]) -> None:
    ours = new_client()
    complete_by_document(ours)
    plain = request_of(new_client(), {"Parts": [{"PartNumber": number, "ETag": etag} for number, etag in parts]})
    sent = request_of(ours, parts)
    assert sent.body == plain.body
    assert (sent.method, sent.url) == (plain.method, plain.url)
    varying = {"User-Agent", "Authorization", "X-Amz-Date", "amz-sdk-invocation-id"}
    assert {name: value for name, value in sent.headers.items() if name not in varying} == {
        name: value for name, value in plain.headers.items() if name not in varying
    }
