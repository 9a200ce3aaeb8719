"""What the pages say in tables and lists is complete: pages, public names, errors, rooms."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import aiockpt
from aiockpt import errors
from test_architecture import APPLICATION, MODULES, ROOMS, room_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

PUBLIC_MODULES = ("aiockpt", "aiockpt.dcp", "aiockpt.s3reader", "aiockpt.testing", "aiockpt.errors")

#: What a program imports that is no class or function.
NOT_DOCUMENTED_ALONE = {"__version__"}


def names_of(module: ModuleType) -> set[str]:
    own = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    return {name for name in getattr(module, "__all__", own) if not name.startswith("_")} - NOT_DOCUMENTED_ALONE


def first_cells(page: str, heading: str) -> list[str]:
    """What stands in backquotes in the first column of the table under a heading."""
    section = (DOCS / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return [name.rstrip("/") for row in rows for name in re.findall(r"`([^`]+)`", row)]


def linked(page: Path) -> set[str]:
    links = re.findall(r"\]\(([^)#]+\.md)(?:#[^)]*)?\)", page.read_text())
    return {str((page.parent / link).resolve().relative_to(DOCS)) for link in links}


def test_every_page_is_in_the_navigation_and_on_the_first_one() -> None:
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert set(re.findall(r"[\w/-]+\.md", (ROOT / ".mkdocs.yml").read_text().split("\nnav:")[1])) == pages
    first = {page for page in pages if not page.startswith("reference/")} - {"index.md"} | {"reference/index.md"}
    assert linked(DOCS / "index.md") == first
    assert linked(DOCS / "reference" / "index.md") == {page for page in pages if page.startswith("reference/")} - {
        "reference/index.md"
    }


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_every_public_name_is_in_the_reference(module: str) -> None:
    directives = [
        target
        for page in (DOCS / "reference").glob("*.md")
        for target in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
    ]
    assert directives
    shown = set()
    for target in directives:
        home, _, name = target.rpartition(".")
        if target in MODULES:
            shown |= {
                getattr(importlib.import_module(target), one) for one in names_of(importlib.import_module(target))
            }
        else:
            shown.add(getattr(importlib.import_module(home), name))
    package = importlib.import_module(module)
    assert [name for name in sorted(names_of(package)) if getattr(package, name) not in shown] == []


def test_every_error_is_in_the_table() -> None:
    taxonomy = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.AiockptError)
    ]
    assert sorted(first_cells("semantics.md", "Errors")) == sorted(taxonomy)


def test_the_table_of_rooms_is_that_of_the_tests() -> None:
    top = {module.split(".")[1] for module in MODULES if room_of(module) == "top" and module != aiockpt.__name__}
    rooms = first_cells("architecture.md", "Rooms")
    assert sorted(rooms) == sorted((ROOMS.keys() | top | APPLICATION) - {"top", "application"})
    above: set[str] = set()
    for name in rooms:
        arrows = ROOMS[room_of(f"aiockpt.{name}")].arrows - {"top"}
        assert arrows <= above | {name}, f"{name} may import {sorted(arrows - above)}, which stand below it"
        above.add(name)
