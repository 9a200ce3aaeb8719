"""The text that is learned: sources of Python's own library, the same at every run on a machine."""

from __future__ import annotations

from importlib.abc import InspectLoader
from importlib.util import find_spec

#: Some 700 KB of prose-rich modules, in pure Python in every CPython since 3.11.
MODULES = ("argparse", "ast", "difflib", "doctest", "inspect", "optparse", "pydoc", "tarfile", "typing", "zipfile")


def corpus() -> bytes:
    """The text, as the bytes that are the tokens.

    Raises:
        RuntimeError: this Python ships without sources.
    """
    return "\n".join(_source(name) for name in MODULES).encode()


def _source(module: str) -> str:
    spec = find_spec(module)
    loader = spec.loader if spec else None
    source = loader.get_source(module) if isinstance(loader, InspectLoader) else None
    if source is None:
        raise RuntimeError(f"the demo learns from Python's own sources, and this Python has none for {module!r}")
    return source
