"""Kinds of arguments: checkpoints in S3, and in S3 or in a folder."""

from __future__ import annotations

from pathlib import Path

import click

from aiockpt.model import SCHEME, ObjectId


class S3Uri(click.ParamType[ObjectId]):
    """``s3://bucket[/key]``, as an object id without a slash at its end."""

    name = "s3://bucket/key"

    def convert(self, value: str | ObjectId, param: click.Parameter | None, ctx: click.Context | None) -> ObjectId:
        """Parse it."""
        if isinstance(value, ObjectId):
            return value
        try:
            parsed = ObjectId.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return ObjectId(parsed.bucket, parsed.key.rstrip("/"))


class Place(click.ParamType[ObjectId | Path]):
    """``s3://bucket[/key]`` as an object id, anything else as a path."""

    name = "place"

    def convert(
        self, value: str | ObjectId | Path, param: click.Parameter | None, ctx: click.Context | None
    ) -> ObjectId | Path:
        """Parse it."""
        if isinstance(value, str):
            return S3Uri().convert(value, param, ctx) if value.startswith(SCHEME) else Path(value)
        return value


S3_URI = S3Uri()
PLACE = Place()
