"""Choosing by name. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import translate


def name_filter(globs: Sequence[str] = (), regexes: Sequence[str] = ()) -> Callable[[str], bool]:
    """Whether a name matches any of the patterns: globs match all of it, regular expressions some of it.

    Without patterns every name does.

    Raises:
        ValueError: a regular expression that is none.
    """
    patterns = [re.compile(rf"\A{translate(glob)}") for glob in globs] + [_compiled(regex) for regex in regexes]
    return lambda name: not patterns or any(pattern.search(name) for pattern in patterns)


def _compiled(regex: str) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except re.error as exc:
        raise ValueError(f"{regex!r} is no regular expression: {exc}") from exc
