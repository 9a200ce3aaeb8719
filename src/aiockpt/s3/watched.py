"""aiobotocore's requests as exchanges: what it sends for the control plane, and for bulk bytes where a proxy is.

By botocore's own events, each HTTP request is seen, redirected and repeated ones included. All of one call happens in
one task, so its context is the caller's. A request that is cancelled on its way is not seen to end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore.utils import determine_content_length

from aiockpt.model import ObjectId
from aiockpt.observe.exchange import Exchange
from aiockpt.s3.address import STAND_IN_KEY

_TARGET = "aiockpt_target"
_EXCHANGE = "aiockpt_exchange"


def watch(client: Any) -> None:
    """Show the observers what an aiobotocore S3 client sends."""
    events = client.meta.events
    events.register("before-parameter-build.s3", _note_target)
    events.register("request-created.s3", _begin)
    events.register("response-received.s3", _end)


def _note_target(params: Mapping[str, Any], context: dict[str, Any], **_: Any) -> None:
    if params.get("Key") == STAND_IN_KEY:
        return  # a request that is never sent
    context[_TARGET] = ObjectId(str(params.get("Bucket", "")), str(params.get("Key") or params.get("Prefix") or ""))


def _begin(request: Any, operation_name: str, **_: Any) -> None:
    context = request.context
    target = context.get(_TARGET)
    if target is None:
        return
    exchange = Exchange(operation_name, target, ours=False)
    exchange.sent_bytes = determine_content_length(request.data) or 0
    context[_EXCHANGE] = exchange.__enter__()  # it is left in another event


def _end(
    context: dict[str, Any], response_dict: Mapping[str, Any] | None, exception: Exception | None, **_: Any
) -> None:
    exchange: Exchange | None = context.pop(_EXCHANGE, None)
    if exchange is None:
        return
    if response_dict is not None:
        exchange.status = int(response_dict["status_code"])
        if exchange.operation != "HeadObject":
            exchange.received_bytes = _announced_bytes(response_dict["headers"])
    exchange.__exit__(type(exception) if exception is not None else None, exception, None)


def _announced_bytes(headers: Mapping[str, Any]) -> int:
    """The announced length of a body; 0: none is."""
    text = str(headers.get("Content-Length", ""))
    return int(text) if text.isdecimal() else 0
