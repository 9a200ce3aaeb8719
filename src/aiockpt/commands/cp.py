"""``aiockpt cp``, ``get``, ``put``: whole checkpoints between buckets and folders."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import click

from aiockpt.blocking.store import Store
from aiockpt.commands.parameters import PLACE, S3_URI
from aiockpt.commands.progress import Bar
from aiockpt.commands.session import Session, command
from aiockpt.commands.words import count, duration, size
from aiockpt.model import ObjectId
from aiockpt.transfer.contents import Contents, contents_of_bucket, contents_of_folder
from aiockpt.transfer.copy import copy
from aiockpt.transfer.get import get as get_checkpoint
from aiockpt.transfer.put import Bucket, Folder
from aiockpt.transfer.put import put as put_checkpoint
from aiockpt.transfer.target import prepare_bucket, prepare_folder

_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace the checkpoint that is there.")
_FOLDER = click.Path(file_okay=False, path_type=Path)

CP_EXAMPLES = """\
  aiockpt cp s3://bucket/run/step-1000 s3://archive/run/step-1000
  aiockpt cp --from-endpoint-url http://minio:9000 s3://old/step-1000 s3://new/step-1000
  aiockpt cp ./step-1000 s3://bucket/run/step-1000
"""

GET_EXAMPLES = """\
  aiockpt get s3://bucket/run/step-1000 ./step-1000
  aiockpt get --no-sign-request --region us-west-2 s3://public/model /data/model
"""

PUT_EXAMPLES = """\
  aiockpt put ./step-1000 s3://bucket/run/step-1000
  aiockpt put --overwrite --json ./step-1000 s3://bucket/run/latest
"""


@command(CP_EXAMPLES)
@click.argument("source", type=PLACE)
@click.argument("target", type=PLACE)
@_OVERWRITE
@click.option("--from-endpoint-url", metavar="URL", help="The source's endpoint, if it is another one.")
@click.option("--from-region", help="The source's region, if it is another one.")
@click.option("--from-profile", help="The source's AWS profile, if it is another one.")
def cp(
    session: Session,
    *,
    source: ObjectId | Path,
    target: ObjectId | Path,
    overwrite: bool,
    from_endpoint_url: str | None,
    from_region: str | None,
    from_profile: str | None,
) -> None:
    """Copy the checkpoint SOURCE to TARGET, each an s3:// URI or a folder.

    Between two places of one endpoint the service copies by itself; with any --from option, and from and to folders,
    the bytes pass through here. TARGET gets its metadata last: until then there is no checkpoint, and none after a
    failure or Ctrl-C.
    """
    store = session.store
    if from_endpoint_url or from_region or from_profile:
        settings = {"endpoint_url": from_endpoint_url, "profile": from_profile}
        config = store.config.merged(**{name: value for name, value in settings.items() if value})
        store = Store(config, from_region or store.region)
    _transfer(session, store, source, target, overwrite=overwrite)


@command(GET_EXAMPLES)
@click.argument("uri", type=S3_URI)
@click.argument("folder", type=_FOLDER)
@_OVERWRITE
def get(session: Session, *, uri: ObjectId, folder: Path, overwrite: bool) -> None:
    """Fetch the checkpoint at URI into FOLDER, in the layout of PyTorch's own FileSystemReader.

    After a failure or Ctrl-C nothing of it is left there.
    """
    _transfer(session, session.store, uri, folder, overwrite=overwrite)


@command(PUT_EXAMPLES)
@click.argument("folder", type=_FOLDER)
@click.argument("uri", type=S3_URI)
@_OVERWRITE
def put(session: Session, *, folder: Path, uri: ObjectId, overwrite: bool) -> None:
    """Write the checkpoint in FOLDER, as PyTorch's own FileSystemWriter leaves it, to URI.

    After a failure or Ctrl-C there is no checkpoint at URI; data objects that were complete stay, and the same command
    with --overwrite replaces them.
    """
    _transfer(session, session.store, folder, uri, overwrite=overwrite)


def _transfer(
    session: Session, from_store: Store, source: ObjectId | Path, target: ObjectId | Path, *, overwrite: bool
) -> None:
    if isinstance(source, Path) and isinstance(target, Path):
        raise click.UsageError("Neither place is in S3; cp -r copies folders.")
    if source == target and from_store == session.store:
        raise click.UsageError("Source and target are the same place.")
    begun_s = time.monotonic()
    if isinstance(source, Path):
        contents = contents_of_folder(source)
    else:
        contents = from_store.run(partial(contents_of_bucket, base=source))
    with session.bar("copying", contents.nbytes) as bar:
        _move(session.store, from_store, source, target, contents, bar, overwrite=overwrite)
    _report(session, source, target, contents, time.monotonic() - begun_s)


def _move(
    store: Store,
    from_store: Store,
    source: ObjectId | Path,
    target: ObjectId | Path,
    contents: Contents,
    bar: Bar,
    *,
    overwrite: bool,
) -> None:
    """The one way that fits the two places."""
    if isinstance(target, Path):
        assert isinstance(source, ObjectId)
        prepare_folder(target, contents, overwrite=overwrite)
        get_checkpoint(from_store, source, contents, target, bar.advance)
        return
    store.run(lambda engine: prepare_bucket(engine, target, contents, overwrite=overwrite))
    if isinstance(source, Path):
        put_checkpoint(Folder(source), contents, store, target, bar.advance)
    elif from_store == store:
        store.run(lambda engine: copy(engine, source, contents, target, bar.advance))
    else:
        put_checkpoint(Bucket(from_store, source), contents, store, target, bar.advance)


def _report(
    session: Session, source: ObjectId | Path, target: ObjectId | Path, contents: Contents, seconds: float
) -> None:
    if session.as_json:
        session.print_json(
            {
                "source": str(source),
                "target": str(target),
                "objects": len(contents.data),
                "nbytes": contents.nbytes,
                "seconds": seconds,
            }
        )
        return
    rate = size(int(contents.nbytes / seconds))
    moved = f"{size(contents.nbytes)} in {count(len(contents.data), 'object')}"
    session.print(f"{target}: {moved} from {source}, {duration(seconds)}, {rate}/s")
