from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from aiockpt.demo.serve import serve

PROGRAM = "from aiockpt.cli import main; main()"


@pytest.fixture
def serving() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, "serve", "--bucket", "a", "--bucket", "b", "--anonymous"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def read_environment(process: subprocess.Popen[str]) -> dict[str, str]:
    """What it says to export; it serves once it has said so."""
    assert process.stdout is not None
    variables = {}
    for line in process.stdout:
        if line.startswith("#"):
            assert line == "# serving s3://a s3://b; Ctrl-C ends it\n"
            break
        name, _, value = line.removeprefix("export ").partition("=")
        variables[name] = "".join(shlex.split(value))
    return variables


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_told_to_stop(serving: subprocess.Popen[str], how: signal.Signals) -> None:
    environment = read_environment(serving)
    url = environment["AWS_ENDPOINT_URL_S3"]
    assert url.startswith("http://127.0.0.1:")
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"} < environment.keys()
    with urllib.request.urlopen(f"{url}/b?list-type=2") as answer:
        assert b"<Name>b</Name>" in answer.read()
    serving.send_signal(how)
    _, errors = serving.communicate(timeout=20)
    assert (serving.returncode, errors) == (0, "")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/b?list-type=2")


def test_what_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, why in (
            (["--port", str(taken.getsockname()[1])], "address already in use"),
            (["--folder", str(tmp_path / "file" / "below")], "Not a directory"),
        ):
            command = [sys.executable, "-c", PROGRAM, "serve", *arguments]
            ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
            assert (ran.returncode, ran.stdout) == (1, "")
            assert ran.stderr.startswith("Error: the local endpoint did not start: ")
            assert why in ran.stderr
            assert len(ran.stderr.splitlines()) == 1


def test_a_port_that_is_none_is_refused() -> None:
    result = CliRunner().invoke(serve, ["--port", "99999"])
    assert result.exit_code == 2
    assert "99999 is not in the range" in result.stderr


def test_an_endpoint_that_dies_is_an_error(serving: subprocess.Popen[str]) -> None:
    read_environment(serving)
    children = Path(f"/proc/{serving.pid}/task/{serving.pid}/children").read_text()
    os.kill(int(children), signal.SIGKILL)
    _, errors = serving.communicate(timeout=20)
    assert (serving.returncode, errors) == (1, "Error: the endpoint's process ended by itself; see above\n")
