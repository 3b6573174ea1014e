"""The ``eftnas`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bootstrapnas.pipeline import cli
from eftnas.commands import COMMANDS

DESCRIPTION = "EFTNAS: from a pre-trained Transformer to a smaller one in OpenVINO, stage by stage."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``eftnas`` command line."""
    return cli.main("eftnas", DESCRIPTION, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
