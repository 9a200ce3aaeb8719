"""Foreign exceptions without what they know of requests: they stay as causes, where anyone may print or pickle them.

aiohttp's hold the headers that were sent, Authorization among them; botocore's hold the whole request, and, when a
signature was refused, the text that was signed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import aiohttp
from botocore import exceptions as botocore_errors

#: What an error document says that is worth keeping.
_KEPT = frozenset({"Code", "Message", "Region", "Endpoint", "RequestId", "HostId", "BucketName", "Key", "Resource"})

#: Stands in for the headers of a request.
_NO_HEADERS: Any = {}


def chain(exc: BaseException) -> Iterator[BaseException]:
    """An exception and those that led to it, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exc]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__context__, one.__cause__]


def scrub(exc: BaseException) -> None:
    """Take what was sent out of an exception and out of those that led to it; their messages stay."""
    for one in chain(exc):
        if isinstance(one, aiohttp.ClientResponseError):
            one.request_info = one.request_info._replace(headers=_NO_HEADERS)
            one.args = (one.status, one.message)
        elif isinstance(one, botocore_errors.ClientError):
            said = one.response.get("Error", {})
            one.response["Error"] = {name: text for name, text in said.items() if name in _KEPT}
        elif isinstance(one, botocore_errors.HTTPClientError):
            one.request = one.response = None
            one.kwargs.pop("request", None)
