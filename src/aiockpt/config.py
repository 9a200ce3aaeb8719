"""Settings: one frozen dataclass, and the only place that reads the process environment.

Credentials, profiles and endpoints that botocore understands are left to botocore; this room reads only what the bulk
path must know before botocore is built (a custom endpoint, a proxy).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from aiockpt.errors import ConfigError
from aiockpt.model import KiB, MiB

ChecksumPolicy = Literal["crc32", "off"]
AddressingStyle = Literal["auto", "path", "virtual"]

#: What may stand in ``extra_args``: the arguments of botocore's put_object and create_multipart_upload that say how
#: an object is stored. Integrity and naming are aiockpt's own and cannot be overridden here.
EXTRA_ARGS = frozenset({
    "ACL", "BucketKeyEnabled", "CacheControl", "ContentType", "ExpectedBucketOwner", "Metadata",
    "ServerSideEncryption", "SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5", "SSEKMSEncryptionContext",
    "SSEKMSKeyId", "StorageClass", "Tagging",
})  # fmt: skip


#: Where botocore finds an endpoint, the first one first.
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


@dataclass(frozen=True)
class S3ClientConfig:
    """How to talk to S3. The first seven fields are the drop-in contract's; the others are aiockpt's own.

    Attributes:
        throughput_target_gbps: gigabits a second that the link should carry: decides how many requests run at once
            to begin with; what the link gives decides from there.
        part_size: preferred size of an uploaded part and of a range request, in bytes. 5 MiB to 5 GiB, checked when a
            client is built. Range requests are of half of it to twice as much, and up to four times as much while the
            loop thread is the bound; parts never of less, of up to twice as much then, and of up to 32 MiB in the
            background.
        unsigned: send anonymous requests.
        force_path_style: ``https://host/bucket/key`` instead of ``https://bucket.host/key``.
        max_attempts: tries of one request, the first included.
        profile: name of an AWS profile.
        requester_pays: accept the charges of a requester-pays bucket; not with ``unsigned``.
        endpoint_url: another S3 than AWS's; also taken from ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, profiles.
        ca_bundle: PEM file of the authorities to trust; also taken from ``AWS_CA_BUNDLE`` and profiles.
        verify_tls: False switches certificate verification off.
        addressing_style: None means path style for custom endpoints and botocore's choice for AWS.
        max_connections: most connections open at once.
        loop_threads: threads that the bulk connections of this process are spread over. One moves 1 GB/s over TLS and 3
            without, for the least CPU; more are for links that are faster than that, and cores that are idle.
        background_nice: how much saves in the background (``dcp.async_save``, ``aiockpt.save_in_background``) give way
            to other threads that want a processor, on Linux: 0 (not at all) to 19. See ``dcp.background``.
        background_share: CPU time that such a save may take, as a share of one processor's: it pauses between parts to
            stay below. A third moves some 1 GB/s.
        memory_bytes: bound of the bytes staged at once, over everything in flight; tensors that bytes land in or
            leave from directly do not count.
        max_gap_bytes: widest gap between two wanted ranges that is fetched to spare a request. The default keeps what
            is fetched close to what is wanted: 64 KiB take 0.7 ms at 90 MB/s. Within one strided slice, where every
            gap is of the same tensor, ``dcp.slices`` goes further.
        connect_timeout_s: longest wait for a connection, name resolution and TLS included.
        stall_timeout_s: longest time without one byte moving in a request.
        attempt_timeout_s: longest time for one try of a request, after which it is cut and tried again; what a read
            had landed stays. None: unbounded, as long as bytes move.
        operation_timeout_s: longest time for one request with all its retries; then it is cut. None: unbounded.
        backoff_base_s, backoff_cap_s: bounds of the random pauses between retries; the latter also of what a
            service may ask for on top (``Retry-After``).
        hedge_share: most second requests that race a range request or a part which is far slower than its siblings, as
            a share of all in that direction, one of them in advance; 0 switches them off. The first one wins; see
            ``engine.hedging``.
        checksum: "crc32" sends a CRC32 with every part and object and proves what is read; "off" does neither.
        extra_args: arguments for everything written, named as botocore's put_object names them (``EXTRA_ARGS``).
    """

    throughput_target_gbps: float = 10.0
    part_size: int = 8 * MiB
    unsigned: bool = False
    force_path_style: bool = False
    max_attempts: int = 10
    profile: str | None = None
    requester_pays: bool = False
    endpoint_url: str | None = None
    ca_bundle: str | None = None
    verify_tls: bool = True
    addressing_style: AddressingStyle | None = None
    max_connections: int = 64
    loop_threads: int = 1
    background_nice: int = 19
    background_share: float = 1 / 3
    memory_bytes: int = 32 * MiB
    max_gap_bytes: int = 64 * KiB
    connect_timeout_s: float = 10.0
    stall_timeout_s: float = 30.0
    attempt_timeout_s: float | None = None
    operation_timeout_s: float | None = None
    backoff_base_s: float = 0.05
    backoff_cap_s: float = 20.0
    hedge_share: float = 0.02
    checksum: ChecksumPolicy = "crc32"
    extra_args: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)  # may hold a customer's key

    def __post_init__(self) -> None:
        if self.requester_pays and self.unsigned:
            raise ConfigError("requester_pays needs signed requests: it cannot be combined with unsigned")
        if self.checksum not in get_args(ChecksumPolicy):
            raise ConfigError(f"checksum must be one of {get_args(ChecksumPolicy)}, got {self.checksum!r}")
        if unknown := sorted(set(self.extra_args) - EXTRA_ARGS):
            raise ConfigError(
                f"extra_args does not take {', '.join(unknown)}; it takes {', '.join(sorted(EXTRA_ARGS))}"
            )
        if not isinstance(self.extra_args.get("SSECustomerKey", ""), (str, bytes)):
            raise ConfigError("extra_args: SSECustomerKey must be str or bytes")  # botocore would show what it is
        if "@" in (self.endpoint_url or ""):
            raise ConfigError("endpoint_url must not hold a user name or password: they would be in every message")

    def merged(self, **overrides: Any) -> S3ClientConfig:
        """This configuration with some fields replaced.

        Raises:
            TypeError: a name that is no field, as any call with an unknown keyword.
        """
        known = {f.name for f in dataclasses.fields(self)}
        if unknown := sorted(set(overrides) - known):
            raise TypeError(
                f"unexpected keyword argument {unknown[0]!r}; S3ClientConfig has {', '.join(sorted(known))}"
            )
        return dataclasses.replace(self, **overrides)

    def check(self) -> None:
        """Check what the dataclass itself takes unseen, when a client is about to be built from it.

        Raises:
            ConfigError: names the field and the values that work.
        """
        for name in ("max_attempts", "max_connections", "memory_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        self._check_threads()
        timeouts = ("connect_timeout_s", "stall_timeout_s", "attempt_timeout_s", "operation_timeout_s")
        for name in ("throughput_target_gbps", *timeouts):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} must be a positive number, got {value}")
        for name in ("max_gap_bytes", "backoff_base_s", "backoff_cap_s"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"{name} must be a number from 0 on, got {value}")
        if not 0 <= self.hedge_share <= 1:
            raise ConfigError(f"hedge_share must be a share from 0 to 1, got {self.hedge_share}")
        if self.addressing_style not in (None, *get_args(AddressingStyle)):
            raise ConfigError(f"addressing_style must be one of {get_args(AddressingStyle)}, or None")
        self._check_endpoint_url()

    def _check_threads(self) -> None:
        if not (isinstance(self.loop_threads, int) and 1 <= self.loop_threads <= self.max_connections):
            raise ConfigError(
                f"loop_threads must be a number from 1 to max_connections ({self.max_connections}), since each has "
                f"connections of its own; got {self.loop_threads}"
            )
        if not (isinstance(self.background_nice, int) and 0 <= self.background_nice <= 19):
            raise ConfigError(f"background_nice must be a number from 0 to 19, got {self.background_nice}")
        if not self.background_share > 0:
            raise ConfigError(f"background_share must be a number above 0, got {self.background_share}")

    def _check_endpoint_url(self) -> None:
        for name, url in self._endpoint_urls():
            if "@" in url:
                raise ConfigError(f"{name} must not hold a user name or password: they would be in every message")
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ConfigError(f"{name} must be http://host or https://host, got {url!r}")

    def _endpoint_urls(self) -> list[tuple[str, str]]:
        """The endpoint that is set here, or those that botocore finds in the environment, by name."""
        if self.endpoint_url is not None:
            return [("endpoint_url", self.endpoint_url)]
        return [(name, os.environ[name]) for name in _ENDPOINT_VARIABLES if os.environ.get(name)]

    @property
    def cache_key(self) -> tuple[Any, ...]:
        """Equal for configurations that can share one engine, botocore's own in the environment included."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["extra_args"]
        secrets = [*self.extra_args.items(), *(pair for pair in os.environ.items() if pair[0].startswith("AWS_"))]
        return (*values.values(), hashlib.sha256(repr(sorted(secrets)).encode("utf-8", "surrogateescape")).digest())


def has_custom_endpoint(config: S3ClientConfig) -> bool:
    """Whether the configuration or the environment names another endpoint than AWS's."""
    return bool(config.endpoint_url or any(map(os.environ.get, _ENDPOINT_VARIABLES)))


def proxy_for(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for this scheme and host, or None."""
    if urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(scheme)


def trace_path() -> str:
    """The file that ``AIOCKPT_TRACE`` names for a timeline of this process; ``""``: none."""
    return os.environ.get("AIOCKPT_TRACE", "")
