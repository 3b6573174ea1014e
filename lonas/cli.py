"""The ``lonas`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bootstrapnas.pipeline import cli
from lonas.commands import COMMANDS

DESCRIPTION = "LoNAS: a smaller model and a smaller adapter of a frozen Transformer at once, stage by stage."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``lonas`` command line."""
    return cli.main("lonas", DESCRIPTION, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
