from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from aiockpt.model import ObjectId
from aiockpt.observe.exchange import Exchange, unwatch_everywhere, watch_everywhere
from aiockpt.observe.otel import Telemetry
from aiockpt.observe.recorder import Recorder
from aiockpt.observe.report import Phase

pytest.importorskip("opentelemetry.sdk", reason="the test extra has it")

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TARGET = ObjectId("bucket", "key")


class Told:
    """What the exporters have in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers, meters = TracerProvider(), MeterProvider([self.reader])
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        monkeypatch.setattr(trace, "get_tracer", tracers.get_tracer)  # a provider can be set once in a process
        monkeypatch.setattr(metrics, "get_meter", meters.get_meter)
        self.telemetry = Telemetry()
        self.tracer = tracers.get_tracer("user")

    def spans(self) -> dict[str, Any]:
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        data: Any = self.reader.get_metrics_data()
        found = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics if m.name == name]
        return [(dict(point.attributes), point) for metric in found for point in metric.data.data_points]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Any:
    told = Told(monkeypatch)
    watch_everywhere(told.telemetry)
    yield told
    unwatch_everywhere(told.telemetry)


def request(operation: str = "GetObject", **fields: Any) -> None:
    with Exchange(operation, TARGET) as exchange:
        for name, value in fields.items():
            setattr(exchange, name, value)


def test_metrics(told: Told) -> None:
    request(status=206, received_bytes=10)
    request(status=206, received_bytes=5, attempt=2)
    request("PutObject", status=200, sent_bytes=7)
    request("ListObjectsV2", status=200, received_bytes=1000)
    assert {(about["operation"], about["status"]): point.value for about, point in told.points("aiockpt.requests")} == {
        ("GetObject", 206): 2,
        ("PutObject", 200): 1,
        ("ListObjectsV2", 200): 1,
    }
    bytes_moved = {about["direction"]: point.value for about, point in told.points("aiockpt.bytes")}
    assert bytes_moved == {"received": 15, "sent": 7}
    assert [(about, point.value) for about, point in told.points("aiockpt.retries")] == [
        ({"operation": "GetObject"}, 1)
    ]
    assert sum(point.count for _, point in told.points("aiockpt.request.duration")) == 4


def test_a_load_is_a_span_within_the_users_and_its_phases_are_spans_in_it(told: Told) -> None:
    recorder = Recorder("load", "s3://bucket/ckpt", 3)
    with told.tracer.start_as_current_span("step"):
        with recorder.phase(Phase.TRANSFER), recorder.phase(Phase.VERIFY):
            recorder.expect(100, lambda: 100)
        recorder.finish()
    spans = told.spans()
    load = spans["aiockpt.load"]
    assert load.parent.span_id == spans["step"].context.span_id
    assert {name for name, span in spans.items() if span.parent and span.parent.span_id == load.context.span_id} == {
        "aiockpt.plan", "aiockpt.transfer", "aiockpt.verify",
    }  # fmt: skip
    assert (load.attributes["aiockpt.uri"], load.attributes["aiockpt.rank"]) == ("s3://bucket/ckpt", 3)
    assert load.attributes["aiockpt.wanted_bytes"] == 100
    assert load.status.is_unset
    step = spans["step"]
    slack_ns = 50_000_000  # two clocks, set to one another
    for name in ("aiockpt.plan", "aiockpt.transfer", "aiockpt.verify"):
        assert load.start_time <= spans[name].start_time <= spans[name].end_time <= load.end_time
    assert step.start_time - slack_ns <= load.start_time
    assert load.end_time <= step.end_time + slack_ns
    ((about, point),) = told.points("aiockpt.duration")
    assert (about, point.count) == ({"kind": "load", "error": ""}, 1)


def test_a_failed_save_is_an_error(told: Told) -> None:
    recorder = Recorder("save", "s3://bucket/ckpt")
    with pytest.raises(OSError, match="gone"), recorder.phase(Phase.TRANSFER), recorder.phase(Phase.STAGING):
        raise OSError("gone")
    save = told.spans()["aiockpt.save"]
    assert not save.status.is_ok
    assert save.status.description == "OSError"
    assert [about["error"] for about, _ in told.points("aiockpt.duration")] == ["OSError"]


USED = """
import sys
{first}
from aiockpt.observe import exchange, otel
otel.watch_if_used()
otel.watch_if_used()
print(len(exchange._everywhere), "opentelemetry" in sys.modules)
"""


@pytest.mark.parametrize(
    ("first", "said"), [("", "0 False"), ("import opentelemetry.trace", "1 True")], ids=["unused", "used"]
)
def test_it_is_used_only_by_programs_that_use_it(first: str, said: str) -> None:
    code = USED.format(first=first)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == said
