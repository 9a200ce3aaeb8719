"""``extra_args`` (named as botocore names them), requester-pays and conditions, as headers for the bulk path.

botocore does the same for what goes through it; the two must agree, so the names are kept in one table.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from aiockpt.config import S3ClientConfig
from aiockpt.model import Replaces
from aiockpt.wire.s3 import if_match

_HEADERS = {
    "ACL": "x-amz-acl",
    "BucketKeyEnabled": "x-amz-server-side-encryption-bucket-key-enabled",
    "CacheControl": "Cache-Control",
    "ContentType": "Content-Type",
    "ExpectedBucketOwner": "x-amz-expected-bucket-owner",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSEncryptionContext": "x-amz-server-side-encryption-context",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "StorageClass": "x-amz-storage-class",
    "Tagging": "x-amz-tagging",
}

#: Arguments without which an object under a customer's key is neither written nor read: botocore's names.
_CUSTOMER_KEY = ("SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5")

#: Arguments of put_object that copy_object takes too; what describes the content is copied with the object instead.
_COPIED = ("ACL", "BucketKeyEnabled", "ServerSideEncryption", "SSEKMSEncryptionContext", "SSEKMSKeyId", "StorageClass")


def _customer_key_headers(arguments: Mapping[str, Any]) -> dict[str, str]:
    """SSE-C: the key goes base64-encoded, with its MD5; as with botocore, one given with its MD5 is so already."""
    key = arguments.get("SSECustomerKey")
    if key is None:
        return {}
    encoded, digest = key, arguments.get("SSECustomerKeyMD5")
    if digest is None:
        raw = key.encode() if isinstance(key, str) else bytes(key)
        encoded = base64.b64encode(raw).decode()
        digest = base64.b64encode(hashlib.md5(raw, usedforsecurity=False).digest()).decode()
    prefix = "x-amz-server-side-encryption-customer-"
    return {
        f"{prefix}algorithm": str(arguments.get("SSECustomerAlgorithm", "AES256")),
        f"{prefix}key": str(encoded),
        f"{prefix}key-MD5": str(digest),
    }


def request_headers(config: S3ClientConfig) -> dict[str, str]:
    """Headers for every bulk request: GET and UploadPart."""
    headers = _customer_key_headers(config.extra_args)
    if owner := config.extra_args.get("ExpectedBucketOwner"):
        headers[_HEADERS["ExpectedBucketOwner"]] = str(owner)
    if config.requester_pays:
        headers["x-amz-request-payer"] = "requester"
    return headers


def storage_headers(config: S3ClientConfig) -> dict[str, str]:
    """Headers for a bulk request that creates an object: PUT."""
    headers = request_headers(config)
    for name, header in _HEADERS.items():
        if (value := config.extra_args.get(name)) is not None:
            headers[header] = str(value).lower() if isinstance(value, bool) else str(value)
    for name, value in config.extra_args.get("Metadata", {}).items():
        headers[f"x-amz-meta-{name}"] = str(value)
    return headers


def account_arguments(config: S3ClientConfig) -> dict[str, Any]:
    """botocore arguments for every request: who pays, and whose the bucket must be."""
    arguments = {"RequestPayer": "requester"} if config.requester_pays else {}
    if owner := config.extra_args.get("ExpectedBucketOwner"):
        arguments["ExpectedBucketOwner"] = owner
    return arguments


def request_arguments(config: S3ClientConfig) -> dict[str, Any]:
    """botocore arguments for every request about an object's bytes, parts included."""
    return account_arguments(config) | {
        name: config.extra_args[name] for name in _CUSTOMER_KEY if name in config.extra_args
    }


def storage_arguments(config: S3ClientConfig) -> dict[str, Any]:
    """botocore arguments for a request that creates an object: PUT, CreateMultipartUpload, COPY."""
    return {**request_arguments(config), **config.extra_args}


def condition_arguments(replaces: Replaces) -> dict[str, Any]:
    """botocore arguments for a write that may only replace certain things."""
    if replaces.nothing:
        return {"IfNoneMatch": "*"}
    wanted = if_match(replaces.etag)
    return {"IfMatch": wanted} if wanted else {}


def condition_headers(replaces: Replaces) -> dict[str, str]:
    """Headers for a write that may only replace certain things."""
    names = {"IfNoneMatch": "If-None-Match", "IfMatch": "If-Match"}
    return {names[name]: value for name, value in condition_arguments(replaces).items()}


def source_condition(etag: str) -> dict[str, Any]:
    """botocore arguments for a copy whose source must still have this ETag."""
    wanted = if_match(etag)
    return {"CopySourceIfMatch": wanted} if wanted else {}


def copy_source_arguments(config: S3ClientConfig) -> dict[str, Any]:
    """botocore arguments for reading the source of a copy and writing its target under the same customer key."""
    arguments = request_arguments(config)
    for name in _CUSTOMER_KEY:
        if name in arguments:
            arguments[f"CopySource{name}"] = arguments[name]
    return arguments


def copy_arguments(config: S3ClientConfig) -> dict[str, Any]:
    """botocore arguments for a copy within the service."""
    stored = {name: config.extra_args[name] for name in _COPIED if name in config.extra_args}
    return {**copy_source_arguments(config), **stored}
