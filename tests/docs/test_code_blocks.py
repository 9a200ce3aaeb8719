"""Every code block of README and docs is run, page by page, against a local endpoint of its own.

Python blocks of a page share one namespace, in order; shell blocks run under ``bash -e`` with this environment's
programs. A block that cannot be run here stands behind a comment ``<!-- not run: reason -->``, or is one of README's
marked commands, which CI runs as they stand.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from aiockpt.testing import LocalEndpoint

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "sh"}
NO_CODE = {"text", "json", "toml", "yaml"}
EXCUSE = re.compile(r"<!-- (not run: \S.*|demo command|test command) -->")


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    source: str
    line: int
    excused: bool


def blocks(page: Path) -> Iterator[Block]:
    previous = ""
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence":
            assert token.map is not None
            excused = bool(EXCUSE.search(previous))
            yield Block(token.info.strip(), token.content, token.map[0] + 2, excused)
        previous = token.content if token.type == "html_block" else ""


def run_python(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    lines_before = "\n" * (block.line - 1)  # so that a traceback names the page's line
    exec(compile(lines_before + block.source, str(page), "exec"), namespace)  # our own documentation


def run_shell(block: Block) -> None:
    ran = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", block.source], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, f"{block.source}\n{ran.stdout}\n{ran.stderr}"


@pytest.mark.timeout(400)  # a page of commands starts a dozen interpreters that import torch
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # DCP's, of every call in a single process
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_code_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runnable = [block for block in blocks(page) if not block.excused and block.language not in NO_CODE]
    if not runnable:
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with LocalEndpoint() as endpoint:
        for name, value in endpoint.environ().items():
            monkeypatch.setenv(name, value)
        for block in runnable:
            assert block.language in LANGUAGES, f"{page}:{block.line}: no language that can be run: {block.language!r}"
            run_python(block, page, namespace) if block.language == "python" else run_shell(block)


def test_blocks_are_found_and_excuses_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\na = 1\n```\n\n<!-- not run: because -->\n```sh\nfalse\n```\n\ntext\n\n```sh\ntrue\n```\n"
    )
    assert list(blocks(page)) == [
        Block("python", "a = 1\n", 2, excused=False),
        Block("sh", "false\n", 7, excused=True),
        Block("sh", "true\n", 13, excused=False),
    ]


def test_a_failing_block_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run_shell(Block("sh", "false | true", 1, excused=False))
    with pytest.raises(ZeroDivisionError):
        run_python(Block("python", "1 / 0", 1, excused=False), tmp_path, {})
