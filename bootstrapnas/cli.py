"""The ``bootstrapnas`` command: what concerns files rather than a pipeline's stages."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bootstrapnas.artefacts import write_json
from bootstrapnas.errors import UserError
from bootstrapnas.pipeline.cli import ArgumentParser, Command, check_command, execute, guarded, overview

PROGRAM = "bootstrapnas"
STAGES = {
    "export": Command("convert a model to OpenVINO IR, verified against torch", "bootstrapnas.pipeline.export"),
    "evaluate": Command("the task metric of a model directory or an IR", "bootstrapnas.pipeline.evaluate"),
    "benchmark": Command(
        "measure models side by side: latency, throughput", "bootstrapnas.pipeline.benchmark.command", "models"
    ),
    "latency-table": Command(
        "measure what the parts of a model take on this device", "bootstrapnas.pipeline.latency_table"
    ),
    "import-nncf": Command(
        "turn scores and supernets of NNCF 2.x into artefacts", "bootstrapnas.pipeline.import_nncf", "nncf_dir"
    ),
}
"""Subcommands with the flags of a stage."""
DESCRIPTION = "What models take on a device, their export, and the files of NNCF: a pipeline's stages are not needed."
CONFIG = "config"
SUMMARIES = {
    **{name: command.summary for name, command in STAGES.items()},
    CONFIG: "explain an NNCF config, or print the schema of such files",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``bootstrapnas`` command line; return the exit status: 0, or 2 after a user's mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(PROGRAM, DESCRIPTION, SUMMARIES))
        return 0 if arguments else 2
    return guarded(PROGRAM, lambda: _run(arguments[0], arguments[1:]))


def _run(name: str, arguments: list[str]) -> None:
    check_command(PROGRAM, SUMMARIES, name)
    if name in STAGES:
        execute(PROGRAM, STAGES, name, arguments)
    else:
        chosen = config_parser().parse_args(arguments)
        chosen.run(chosen)


def config_parser() -> ArgumentParser:
    """Return the parser of ``config``; what a command runs is its default ``run``."""
    config = ArgumentParser(prog=f"{PROGRAM} {CONFIG}", description=f"{SUMMARIES[CONFIG].capitalize()}.")
    actions = config.add_subparsers(title="commands", required=True, metavar="COMMAND")

    check = actions.add_parser("check", help="explain an NNCF config in words")
    check.add_argument("file", metavar="FILE", help="NNCF config: JSON, with comments and trailing commas.")
    check.add_argument("--model_name_or_path", help="Check it for this model: a local directory, or a hub id.")
    check.add_argument("--json", action="store_true", help="Print one JSON document instead of words.")
    check.set_defaults(run=_check, parser=check)

    schema = actions.add_parser("schema", help="print the JSON Schema of NNCF configs, for editors")
    schema.add_argument("--output", metavar="FILE", help="Write it there instead.")
    schema.set_defaults(run=_schema, parser=schema)
    return config


def _check(chosen: argparse.Namespace) -> None:
    from bootstrapnas.pipeline.config.check import explain

    explanation = explain(chosen.file, chosen.model_name_or_path)
    if chosen.json:
        print(json.dumps(explanation.to_json(), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from bootstrapnas.pipeline.config.text import show

    show(explanation, Console(highlight=False))


def _schema(chosen: argparse.Namespace) -> None:
    from bootstrapnas.nncf_config.json_schema import TITLE, json_schema

    if chosen.output is None:
        print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
        return
    path = Path(chosen.output)
    if path.is_dir() or (path.exists() and f'"title": "{TITLE}"' not in path.read_text("utf-8", errors="replace")):
        raise UserError(f"{path} holds something else than the schema of NNCF configs; choose another --output")
    write_json(path, json_schema())


if __name__ == "__main__":
    sys.exit(main())
