"""Listing: which keys a page of ListObjectsV2 holds. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing.

    Attributes:
        keys: the objects.
        prefixes: the common prefixes that stand for the others.
        next_after: the key or common prefix behind which the next page starts; None: this is the last page.
    """

    keys: list[str]
    prefixes: list[str]
    next_after: str | None


def page_of(keys: Sequence[str], *, prefix: str, delimiter: str, after: str, limit: int) -> Page:
    """Cut a page out of ``keys``, which are sorted by their UTF-8 bytes.

    Args:
        prefix: what the keys must start with.
        delimiter: keys that have it behind the prefix are rolled up; ``""``: none are.
        after: only what follows this key, or this common prefix, is listed.
        limit: how many keys and common prefixes the page may hold.
    """
    entries: list[tuple[str, bool]] = []
    for key in keys:
        if not key.startswith(prefix) or key.encode() <= after.encode():
            continue
        head, found, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else (key, "", "")
        name = prefix + head + found if found else key
        if found and (name == after or (entries and entries[-1] == (name, True))):
            continue
        if len(entries) == limit:
            return _page(entries, entries[-1][0] if entries else after)
        entries.append((name, bool(found)))
    return _page(entries, None)


def _page(entries: list[tuple[str, bool]], next_after: str | None) -> Page:
    return Page(
        [name for name, rolled_up in entries if not rolled_up],
        [name for name, rolled_up in entries if rolled_up],
        next_after,
    )
