"""Bash recipes, run with a stand-in for the program they call that notes its arguments."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


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
