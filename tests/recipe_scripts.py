"""Bash recipes, run with stand-ins for the programs they call: one that notes its arguments, or this process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

Program = Callable[[list[str], str], int]
"""Arguments and, where the first is ``-``, standard input, to the exit status."""


def write_stand_in(directory: Path, program: str) -> Path:
    """Write a program that appends its arguments to the file $CALLS as a line, separated by tabs."""
    path = directory / program
    path.write_text('#!/usr/bin/env bash\nIFS=$\'\\t\'\necho "$*" >>"$CALLS"\n')
    path.chmod(0o755)
    return directory


def calls_of(script: Path, stand_in: Path, directory: Path, **variables: str | Path) -> list[list[str]]:
    """Return the commands that a recipe gives when `variables` are set; `stand_in` is where the program lies."""
    noted = directory / "calls"
    noted.unlink(missing_ok=True)
    environment = {"PATH": f"{stand_in}:{os.environ['PATH']}", "CALLS": str(noted)}
    environment |= {name: str(value) for name, value in variables.items()}
    subprocess.run(["bash", str(script)], env=environment, check=True)
    return [line.split("\t") for line in noted.read_text().splitlines()]


def flags_of(arguments: list[str]) -> dict[str, str]:
    """Return flags and values; every flag of a recipe has one."""
    return dict(zip(arguments[::2], arguments[1::2], strict=True))


_CLIENT = """#!{python} -ISs
import json, socket, sys

with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    given = sys.stdin.read() if sys.argv[1:2] == ["-"] else ""
    link.sendall(json.dumps([{name!r}, sys.argv[1:], given]).encode())
    link.shutdown(socket.SHUT_WR)
    out, err, status = json.loads(b"".join(iter(lambda: link.recv(65536), b"")))
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""


def run_here(
    script: Path, arguments: list[str], programs: Mapping[str, Program], **variables: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run a script whose calls of `programs` are made in this process, which has imported what they need."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as server:
        address = f"{directory}/socket"  # such an address has a hundred characters at most
        server.bind(address)
        server.listen()
        server.settimeout(0.05)
        for name in programs:
            path = Path(directory, name)
            path.write_text(_CLIENT.format(python=sys.executable, address=address, name=name))
            path.chmod(0o755)
        environment = {"PATH": f"{directory}:{os.environ['PATH']}"}
        environment |= {name: str(value) for name, value in variables.items()}
        command = ["bash", str(script), *arguments]
        with Path(directory, "out").open("w+") as out, Path(directory, "err").open("w+") as err:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
            while process.poll() is None:
                try:
                    link, _ = server.accept()
                except TimeoutError:
                    continue
                with link:
                    link.settimeout(None)
                    _answer(link, programs)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, process.returncode, out.read(), err.read())


def _answer(link: socket.socket, programs: Mapping[str, Program]) -> None:
    name, arguments, given = json.loads(b"".join(iter(lambda: link.recv(65536), b"")))
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        status = programs[name](arguments, given)
    link.sendall(json.dumps([out.getvalue(), err.getvalue(), status]).encode())
