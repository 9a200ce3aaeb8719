"""The endpoint's other listener: reads counters, changes shape and faults, touches objects. JSON over HTTP.

It is apart from the S3 one so that what it does is neither counted nor shaped, and needs no TLS.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from aiockpt.testing.answers import Answer, Refusal
from aiockpt.testing.connection import Connection
from aiockpt.testing.content import Content
from aiockpt.testing.faults import Fault, FaultKind
from aiockpt.testing.memory import BlockPool, Landing
from aiockpt.testing.requests import Request, parse_request
from aiockpt.testing.server import Endpoint
from aiockpt.testing.shaping import Shape
from aiockpt.testing.store import StoredObject, etag_of


class Admin:
    """Serves the admin listener's connections: ``METHOD /resource`` or ``/object/<bucket>/<key>``."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._pool = BlockPool()
        self._actions: dict[tuple[str, str], Callable[[Request], Any]] = {
            ("GET", "stats"): self._stats,
            ("DELETE", "stats"): self._reset_stats,
            ("GET", "requests"): self._requests,
            ("PUT", "shape"): self._set_shape,
            ("POST", "faults"): self._add_fault,
            ("DELETE", "faults"): self._clear_faults,
            ("DELETE", "uploads"): self._drop_uploads,
            ("PUT", "object"): self._replace_object,
            ("POST", "object"): self._flip_bit,
        }

    async def serve(self, connection: Connection) -> None:
        """Serve a connection for as long as it lasts."""
        try:
            while True:
                request = parse_request(await connection.read_head())
                landing = Landing(request.content_length or 0, self._pool)
                await connection.fill(landing, landing.size)
                answer = self._answer(replace(request, content=landing.content()))
                connection.write(answer.head("admin"))
                await connection.send(answer.body.pieces)
        except Refusal:  # a malformed head
            pass
        finally:
            connection.close()

    def _answer(self, request: Request) -> Answer:
        action = self._actions.get((request.method, request.bucket))
        if action is None:
            return _json({"error": "no such resource"}, 404)
        try:
            return _json(action(request), 200)
        except (ValueError, TypeError, LookupError, Refusal) as exc:
            return _json({"error": str(exc)}, 400)

    def _stats(self, _: Request) -> Any:
        return asdict(self._endpoint.recorder.stats(len(self._endpoint.state.uploads)))

    def _reset_stats(self, _: Request) -> None:
        self._endpoint.recorder.reset()

    def _requests(self, _: Request) -> Any:
        return [asdict(record) for record in self._endpoint.recorder.log]

    def _set_shape(self, request: Request) -> None:
        self._endpoint.network.shape = Shape(**_body(request))

    def _add_fault(self, request: Request) -> None:
        fields = _body(request)
        self._endpoint.faults.add(Fault(**fields | {"kind": FaultKind(fields["kind"])}))

    def _clear_faults(self, _: Request) -> None:
        self._endpoint.clear_faults()

    def _drop_uploads(self, _: Request) -> None:
        self._endpoint.state.uploads.clear()

    def _replace_object(self, request: Request) -> None:
        bucket, key = _object(request)
        content = Content.of(request.content.to_bytes())
        self._endpoint.state.store.put(bucket, key, StoredObject(content, etag_of(content)))

    def _flip_bit(self, request: Request) -> None:
        bucket, key = _object(request)
        stored = self._endpoint.state.require(bucket, key)
        at_byte: int = _body(request)["flip_bit_at_byte"]
        if not 0 <= at_byte < stored.content.size:
            raise ValueError(f"the object has no byte {at_byte}")
        self._endpoint.state.store.flip_bit(bucket, key, at_byte)


def _object(request: Request) -> tuple[str, str]:
    bucket, _, key = request.key.partition("/")
    return bucket, key


def _body(request: Request) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(request.content.to_bytes())
    return fields


def _json(value: Any, status: int) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, Content.of(json.dumps(value).encode()))
