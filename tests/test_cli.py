from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import click
import pytest
from click.testing import CliRunner, Result

from aiockpt.cli import COMMANDS, LazyGroup, main


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_the_overview_names_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name, (_, line) in COMMANDS.items():
        assert f"  {name}" in result.output
        assert line in result.output


def test_the_overview_imports_no_command() -> None:
    program = (
        "import sys; from aiockpt.cli import main; main(['--help'], standalone_mode=False);"
        "print(sorted({'torch', 'rich', 'aiobotocore', 'aiockpt.demo'} & sys.modules.keys()))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.endswith("[]\n")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_examples(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    assert f"Examples:\n    aiockpt {name}" in result.output


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_overview_and_the_command_agree(name: str) -> None:
    context = click.Context(main)
    assert isinstance(main, LazyGroup)
    command = main.get_command(context, name)
    assert command is not None
    assert command.name == name


def test_an_unknown_command_is_named() -> None:
    result = run("lod")
    assert result.exit_code == 2
    assert "No such command 'lod'" in result.output


def test_the_version() -> None:
    assert version("aiockpt") in run("--version").output


def test_completion_imports_no_command() -> None:
    program = (
        "import sys; from aiockpt.cli import main\n"
        "try: main(prog_name='aiockpt')\n"
        "finally: print(sorted({'torch', 'rich', 'aiobotocore'} & sys.modules.keys()))"
    )
    environ = os.environ | {"_AIOCKPT_COMPLETE": "bash_complete", "COMP_WORDS": "aiockpt s", "COMP_CWORD": "1"}
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ)
    assert output.stdout.splitlines() == ["plain,serve", "plain,sweep", "[]"]


def test_ctrl_c_while_a_command_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LazyGroup, "get_command", interrupted)
    result = run("ls", "s3://bucket")
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")
