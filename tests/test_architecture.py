"""The rooms of ``src/aiockpt`` and the arrows between them, held by reading every module's syntax tree.

`ROOMS` is the design's table as data. Imports for type checkers are arrows like any others; only the search
for circles leaves them out, because they cannot make one at run time.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src"
PACKAGE = "aiockpt"


@dataclass(frozen=True, slots=True)
class Room:
    """What a room may import: other rooms, third-party libraries; and, unless it is pure, an event loop."""

    arrows: frozenset[str]
    libraries: frozenset[str] = frozenset()
    pure: bool = False


def room(arrows: str = "", libraries: str = "", *, pure: bool = False) -> Room:
    return Room(frozenset(arrows.split()), frozenset(libraries.split()), pure)


VALUES = "errors model config"
DECISIONS = f"{VALUES} crc plan wire archive"
ENGINE = f"{DECISIONS} observe transport s3 engine scope bridge blocking"
LIBRARY = f"{ENGINE} s3reader dcp awaitable"

ROOMS = {
    "errors": room(pure=True),
    "model": room("errors", pure=True),
    "config": room("errors model", pure=True),
    "crc": room(libraries="zlib_ng", pure=True),
    "plan": room("errors model", pure=True),
    "wire": room("errors model", "httptools", pure=True),
    "archive": room("errors model crc", "torch", pure=True),
    "observe": room("errors model", "rich"),
    "transport": room(f"{VALUES} wire observe", "uvloop"),
    "s3": room(f"{DECISIONS} observe transport", "aiobotocore aiohttp botocore"),
    "engine": room(f"{DECISIONS} observe transport s3", "anyio"),
    "scope": room("errors", pure=True),
    "bridge": room("errors scope", "anyio uvloop"),
    "blocking": room(f"{DECISIONS} observe transport s3 engine scope bridge"),
    "s3reader": room(f"{VALUES} engine bridge blocking"),
    "dcp": room(f"{ENGINE} s3reader", "torch"),
    "awaitable": room(f"{ENGINE} s3reader dcp", "anyio torch"),
    "testing": room("errors model wire", "httptools uvloop zlib_ng"),
    "inspection": room(LIBRARY, "torch", pure=True),
    "transfer": room(f"{LIBRARY} inspection", "anyio torch"),
    "checkpoints": room(f"{LIBRARY} inspection awaitable", "torch"),
    "top": room(f"{LIBRARY} checkpoints", "anyio torch"),
    "application": room(f"{LIBRARY} testing inspection transfer checkpoints top", "anyio click rich torch"),
}

#: Top-level modules that are programs built on the library, and so may also start the local endpoint.
APPLICATION = {"__main__", "cli", "commands", "demo", "measuring"}

#: What only type checkers have.
STUBS = {"_typeshed"}

EVENT_LOOPS = {"anyio", "asyncio", "uvloop"}

#: Rooms that may read the process environment; the application for torchrun's RANK and WORLD_SIZE.
ENVIRONMENT_READERS = {"config", "testing", "application"}

#: Libraries that aiockpt works without, imported where they are used. Name: why it is optional.
OPTIONAL_LIBRARIES: dict[str, str] = {
    "opentelemetry": "for programs that use it already; nobody else should pay for its import",
}

#: Modules without a test file of their own. Dotted name: what tests them instead.
WITHOUT_MIRROR: dict[str, str] = {}

#: A module of 600 lines has more than one job.
MAX_LINES = 600


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, by its absolute name, and where in the syntax the statement stands."""

    module: str
    in_function: bool = False
    for_typing: bool = False


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((SOURCE / PACKAGE).rglob("*.py"))}


def room_of(module: str) -> str:
    first = f"{module}.".split(".")[1]
    if first in APPLICATION:
        return "application"
    return first if first in ROOMS else "top"


@cache
def syntax(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def names_imported(statement: ast.Import | ast.ImportFrom) -> list[str]:
    """Absolute names; `from package import name` gives `package.name` where that is a module."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    origin = "." * statement.level + (statement.module or "")
    full = [f"{origin}.{alias.name}" for alias in statement.names]
    return [name if name in MODULES else origin for name in full]


def imports(
    node: ast.AST,
    *,
    in_function: bool = False,
    for_typing: bool = False,
) -> list[Import]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [Import(name, in_function, for_typing) for name in names_imported(node)]
    in_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for_typing = for_typing or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return [
        found
        for child in ast.iter_child_nodes(node)
        for found in imports(child, in_function=in_function, for_typing=for_typing)
    ]


def forbidden(room_name: str, imported: Import) -> str:
    """Why a module of this room may not have this import; `""` if it may."""
    rules = ROOMS[room_name]
    library = imported.module.split(".")[0]
    if imported.module.startswith("."):
        return "imports are absolute"
    if imported.in_function and library not in OPTIONAL_LIBRARIES:
        return f"{imported.module}: imports stand at the top of the module"
    if library == PACKAGE:
        target = room_of(imported.module)
        return "" if target in rules.arrows | {room_name} else f"{room_name} may not import {target}"
    if rules.pure and library in EVENT_LOOPS:
        return f"{room_name} is pure: no {library}"
    allowed = rules.libraries | OPTIONAL_LIBRARIES.keys() | (STUBS if imported.for_typing else set())
    return "" if library in sys.stdlib_module_names | allowed else f"{room_name} may not import {library}"


def reads_environment(tree: ast.AST) -> bool:
    names = {"environ", "environb", "getenv", "getenvb"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) == "os")
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {a.name for a in node.names})
        for node in ast.walk(tree)
    )


def mirror(module: str) -> Path:
    *rooms, name = module.split(".")[1:]
    return TESTS.joinpath(*rooms, f"test_{name}.py")


def is_special(module: str) -> bool:
    """Whether it is an `__init__` or `__main__`, which only name or call what other modules do."""
    return MODULES[module].stem in {"__init__", "__main__"}


def test_the_table_has_no_circle() -> None:
    order = TopologicalSorter({name: rules.arrows for name, rules in ROOMS.items()}).static_order()
    assert set(order) == set(ROOMS)


def test_imports_follow_the_arrows() -> None:
    reasons = {
        module: [reason for found in imports(syntax(module)) if (reason := forbidden(room_of(module), found))]
        for module in MODULES
    }
    assert {module: why for module, why in reasons.items() if why} == {}


def test_modules_import_without_circles() -> None:
    graph = {
        module: {found.module for found in imports(syntax(module)) if not found.for_typing} & MODULES.keys()
        for module in MODULES
    }
    TopologicalSorter(graph).prepare()


def test_the_environment_is_read_in_few_places() -> None:
    readers = [module for module in MODULES if reads_environment(syntax(module))]
    assert [module for module in readers if room_of(module) not in ENVIRONMENT_READERS] == []


def test_modules_have_their_mirror_in_the_tests() -> None:
    without = {module for module in MODULES if not is_special(module) and not mirror(module).exists()}
    wrong = sorted(without ^ WITHOUT_MIRROR.keys())
    assert not wrong, "no mirror, or one in spite of an exception:\n" + "\n".join(wrong)


def test_modules_are_short() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: lines for module, lines in lengths.items() if lines > MAX_LINES} == {}


@pytest.mark.parametrize(
    ("room_name", "source"),
    [
        ("plan", "import asyncio"),
        ("plan", "from aiockpt.config import S3ClientConfig"),
        ("plan", "if TYPE_CHECKING:\n    from aiockpt.engine.engine import LoopEngine"),
        ("plan", "import torch"),
        ("engine", "import torch.distributed"),
        ("engine", "from aiockpt import dcp"),
        ("engine", "from aiockpt.testing import LocalEndpoint"),
        ("engine", "from . import crew"),
        ("dcp", "def save():\n    import json"),
        ("top", "from aiockpt.testing import LocalEndpoint"),
        ("s3", "import requests"),
    ],
)
def test_a_forbidden_import_is_seen(room_name: str, source: str) -> None:
    assert any(forbidden(room_name, imported) for imported in imports(ast.parse(source)))


@pytest.mark.parametrize("source", ["os.environ['A']", "os.getenv('A')", "from os import environ"])
def test_a_look_at_the_environment_is_seen(source: str) -> None:
    assert reads_environment(ast.parse(source))


def test_torch_load_is_called_only_for_weights() -> None:
    """Anything else would run what a bucket holds."""
    calls = {
        f"{module}:{node.lineno}": ast.unparse(node)
        for module in MODULES
        for node in ast.walk(syntax(module))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("torch.load")
    }
    assert calls
    unsafe = {where: call for where, call in calls.items() if "weights_only=True" not in call}
    assert unsafe == {}


def test_pickles_are_loaded_in_one_place() -> None:
    names = {"load", "loads", "Unpickler", "_Unpickler", "_load", "_loads"}
    users = {
        module
        for module in MODULES
        for node in ast.walk(syntax(module))
        if isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) in {"pickle", "_pickle"}
    }
    assert users == {"aiockpt.dcp.unpickling"}
