from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from aiockpt.commands.session import Session, command
from aiockpt.errors import ChecksumMismatch, ConfigError
from aiockpt.plan.retry import Backoff
from commands.conftest import Run
from dcp.checkpoints import Place


def run(body: object, *arguments: str) -> Result:
    """A command whose body is given."""

    def probe(session: Session) -> bool | None:
        return body(session)  # type: ignore[operator, no-any-return]

    return CliRunner().invoke(command("  aiockpt probe\n")(probe), arguments)


def fail(error: BaseException) -> object:
    def body(_: Session) -> None:
        raise error

    return body


@pytest.mark.parametrize(("answer", "code"), [(None, 0), (True, 0), (False, 1)])
def test_answers(answer: bool | None, code: int) -> None:
    assert run(lambda _: answer).exit_code == code


def test_a_failure_is_one_line() -> None:
    result = run(fail(ChecksumMismatch("two\nlines")))
    assert (result.exit_code, result.stdout, result.stderr) == (5, "", "Error: two lines\n")


def test_with_v_its_traceback_is_shown() -> None:
    result = run(fail(ConfigError("no")), "-v")
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("Error: no\n")


def test_a_bug_is_no_failure() -> None:
    assert isinstance(run(fail(ZeroDivisionError())).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("options", "shown"), [([], "WARNING"), (["-q"], ""), (["-v"], "INFO WARNING"), (["-vv"], "DEBUG INFO WARNING")]
)
def test_how_much_is_logged(options: list[str], shown: str) -> None:
    logger = logging.getLogger("aiockpt.somewhere")
    before = list(logging.getLogger("aiockpt").handlers)

    def body(session: Session) -> None:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logger.log(level, "said")
        session.say("a message")

    result = run(body, *options)
    assert [line.split()[0] for line in result.stderr.splitlines() if line.endswith("said")] == shown.split()
    assert ("a message" in result.stderr) == (options != ["-q"])
    assert logging.getLogger("aiockpt").handlers == before


def test_the_shared_options_make_the_store() -> None:
    seen: list[Session] = []
    result = run(seen.append, "--endpoint-url", "http://x", "--region", "r", "--profile", "p", "--no-sign-request")
    assert result.exit_code == 0, result.output
    store = seen[0].store
    assert (store.config.endpoint_url, store.region) == ("http://x", "r")
    assert (store.config.profile, store.config.unsigned) == ("p", True)


def test_tables_are_not_cut_in_pipes() -> None:
    name = "x" * 500
    result = run(lambda session: session.print_table(("name", "n"), [(name, "[1]")], numbers=("n",)))
    assert result.stdout.split() == ["name", "n", name, "[1]"]


def test_who_has_no_credentials_is_told(aiockpt: Run, local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    result = aiockpt("ls", local.uri("run"))
    assert result.exit_code == 2
    assert "credentials" in result.stderr


def test_a_service_that_is_not_there(aiockpt: Run, local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "delay", lambda *_: 0.0)
    result = aiockpt("ls", local.uri("run"), "--endpoint-url", "http://127.0.0.1:1")
    assert result.exit_code == 5
    assert result.stderr.count("\n") == 1


def test_python_dash_m() -> None:
    shown = subprocess.run([sys.executable, "-m", "aiockpt", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: aiockpt [OPTIONS] COMMAND" in shown.stdout
