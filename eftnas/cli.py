"""The ``eftnas`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bootstrapnas.pipeline import cli

COMMANDS = {
    "finetune": cli.Command(
        "fine-tune a model on a task: a teacher, or an extracted subnet", "bootstrapnas.pipeline.finetune"
    ),
    "importance": cli.Command("movement-sparsity training: scores of all weights", "eftnas.importance"),
    "search-space": cli.Command("turn scores into a search space, written as an NNCF config", "eftnas.search_space"),
    "train": cli.Command("reorder by importance and train the elastic supernet", "eftnas.train"),
    "search": cli.Command("find the Pareto-optimal subnets with NSGA-II", "bootstrapnas.pipeline.search"),
    "extract": cli.Command("write one subnet as a really smaller Hugging Face model", "bootstrapnas.pipeline.extract"),
    "export": cli.Command("convert a model to OpenVINO IR, verified against torch", "bootstrapnas.pipeline.export"),
    "evaluate": cli.Command("the task metric of a model directory or an IR", "bootstrapnas.pipeline.evaluate"),
    "run": cli.Command("all stages from one recipe, resumable", "eftnas.recipe"),
}
DESCRIPTION = "EFTNAS: from a pre-trained Transformer to a smaller one in OpenVINO, stage by stage."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``eftnas`` command line."""
    return cli.main("eftnas", DESCRIPTION, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
