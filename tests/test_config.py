from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest

from aiockpt.config import EXTRA_ARGS, S3ClientConfig, has_custom_endpoint, proxy_for, trace_path
from aiockpt.errors import ConfigError
from aiockpt.model import MiB


def test_the_contract() -> None:
    config = S3ClientConfig(10.0, 8 * MiB, False, False, 10, None, False)
    assert config == S3ClientConfig()
    assert [field.name for field in dataclasses.fields(config)][:7] == [
        "throughput_target_gbps",
        "part_size",
        "unsigned",
        "force_path_style",
        "max_attempts",
        "profile",
        "requester_pays",
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.part_size = 3  # type: ignore[misc]


def test_requester_pays_needs_a_signature() -> None:
    with pytest.raises(ValueError, match="unsigned"):
        S3ClientConfig(requester_pays=True, unsigned=True)


@pytest.mark.parametrize(
    "wrong", [{"checksum": "md5"}, {"extra_args": {"Key": "x"}}, {"extra_args": {"ChecksumCRC32": "x", "Body": b""}}]
)
def test_what_the_dataclass_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        S3ClientConfig(**wrong)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_attempts", [0, -1]),
        ("max_connections", [0]),
        ("loop_threads", [0, -1, 65, 1.5, "2"]),
        ("background_nice", [-1, 20, 1.5, "2"]),
        ("background_share", [0, -1, math.nan]),
        ("memory_bytes", [0]),
        ("max_gap_bytes", [-1]),
        ("connect_timeout_s", [0, -1, math.inf, math.nan]),
        ("stall_timeout_s", [0, math.inf]),
        ("operation_timeout_s", [0, -3.0, math.nan]),
        ("backoff_base_s", [-0.1, math.inf]),
        ("backoff_cap_s", [-1, math.nan]),
        ("hedge_share", [-0.01, 1.5, 2, math.nan]),
        ("endpoint_url", ["localhost:9000", "s3://x", "http://", "https:///path"]),
        ("addressing_style", ["dns"]),
        ("throughput_target_gbps", [0, -1, math.nan]),
    ],
)
def test_what_is_checked_when_a_client_is_built(name: str, values: list[Any]) -> None:
    for value in values:
        config = S3ClientConfig(**{name: value})
        with pytest.raises(ConfigError, match=name):
            config.check()


def test_what_passes() -> None:
    S3ClientConfig().check()
    S3ClientConfig(
        endpoint_url="http://[::1]:9000",
        max_gap_bytes=0,
        backoff_base_s=0,
        backoff_cap_s=0,
        hedge_share=0,
        operation_timeout_s=1,
    ).check()


def test_merged() -> None:
    config = S3ClientConfig(part_size=7 * MiB)
    assert config.merged() == config
    assert config.merged(max_attempts=2) == S3ClientConfig(part_size=7 * MiB, max_attempts=2)
    with pytest.raises(TypeError, match="max_retries"):
        config.merged(max_retries=3)


def test_configurations_that_may_share_an_engine() -> None:
    def config(**changes: Any) -> S3ClientConfig:
        return S3ClientConfig(**{"extra_args": {"ACL": "private", "StorageClass": "STANDARD"}, **changes})

    swapped = config(extra_args={"StorageClass": "STANDARD", "ACL": "private"})
    assert config().cache_key == swapped.cache_key
    hash(config().cache_key)
    hash(config())
    assert config().cache_key != config(part_size=9 * MiB).cache_key
    assert config().cache_key != config(extra_args={"ACL": "public-read"}).cache_key


def test_other_credentials_in_the_environment_are_another_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = S3ClientConfig().cache_key
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert S3ClientConfig().cache_key != before


def test_a_customer_key_is_not_shown() -> None:
    config = S3ClientConfig(extra_args={"SSECustomerKey": "very-secret-key", "SSECustomerAlgorithm": "AES256"})
    assert "very-secret" not in repr(config)


def test_it_pickles() -> None:
    config = S3ClientConfig(extra_args={"Metadata": {"a": "b"}})
    assert pickle.loads(pickle.dumps(config)) == config


def test_extra_arguments_have_botocore_names() -> None:
    import botocore.session

    model = botocore.session.get_session().get_service_model("s3")
    for operation in ("PutObject", "CreateMultipartUpload"):
        assert model.operation_model(operation).input_shape.members.keys() >= EXTRA_ARGS


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_a_custom_endpoint(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_custom_endpoint(S3ClientConfig())
    assert has_custom_endpoint(S3ClientConfig(endpoint_url="http://localhost"))
    monkeypatch.setenv(name, "http://localhost")
    assert has_custom_endpoint(S3ClientConfig())


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_in_the_environment_is_checked_by_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "127.0.0.1:9000")
    with pytest.raises(ConfigError, match=f"{name} must be http://host or https://host, got '127.0.0.1:9000'"):
        S3ClientConfig().check()
    S3ClientConfig(endpoint_url="http://127.0.0.1:9000").check()  # counts instead
    monkeypatch.setenv(name, "me:very-secret@host")
    with pytest.raises(ConfigError, match=f"{name} must not hold") as caught:
        S3ClientConfig().check()
    assert "very-secret" not in str(caught.value)


def test_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_for("https", "bucket.s3.amazonaws.com") is None
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "localhost,.internal")
    assert proxy_for("https", "bucket.s3.amazonaws.com") == "http://proxy:3128"
    assert proxy_for("http", "bucket.s3.amazonaws.com") is None
    assert proxy_for("https", "localhost") is None
    assert proxy_for("https", "s3.internal") is None


def test_a_trace_is_asked_for_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trace_path() == ""
    monkeypatch.setenv("AIOCKPT_TRACE", "/tmp/trace.json")
    assert trace_path() == "/tmp/trace.json"


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    made = S3ClientConfig(extra_args={"SSECustomerKey": "also-secret"})
    for text in (repr(made), str(made), repr(made.cache_key)):
        assert "secret" not in text
    for wrong in ({"endpoint_url": "http://me:very-secret@host"}, {"extra_args": {"SSECustomerKey": ["very-secret"]}}):
        with pytest.raises(ConfigError) as failure:
            S3ClientConfig(**wrong)
        assert "very-secret" not in str(failure.value)
