"""The ``bootstrapnas`` command: what concerns files rather than a pipeline's stages."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bootstrapnas.artefacts import write_json
from bootstrapnas.errors import UserError
from bootstrapnas.pipeline.cli import ArgumentParser, Command, execute, guarded

PROGRAM = "bootstrapnas"
STAGES = {
    "benchmark": Command(
        "measure models side by side: latency, throughput", "bootstrapnas.pipeline.benchmark", "models"
    ),
    "import-nncf": Command(
        "turn scores and supernets of NNCF 2.x into artefacts", "bootstrapnas.pipeline.import_nncf", "nncf_dir"
    ),
    "latency-table": Command(
        "measure what the parts of a model take on this device", "bootstrapnas.pipeline.latency_table"
    ),
    "export": Command("convert a model to OpenVINO IR, verified against torch", "bootstrapnas.pipeline.export"),
}
"""Subcommands with the flags of a stage."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``bootstrapnas`` command line; return the exit status: 0, or 2 after a user's mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(PROGRAM, lambda: _run(arguments))


def _run(arguments: list[str]) -> None:
    if arguments and arguments[0] in STAGES:
        execute(PROGRAM, STAGES, arguments[0], arguments[1:])
        return
    parser = build_parser()
    if not arguments:
        parser.print_help()
        raise SystemExit(2)
    chosen = parser.parse_args(arguments)
    chosen.run(chosen)


def build_parser() -> ArgumentParser:
    """Return the parser of all subcommands; what a command runs is its default ``run``."""
    parser = ArgumentParser(prog=PROGRAM, description="NNCF configs and files: what they say, and what they become.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    config = commands.add_parser("config", help="explain an NNCF config, or print the schema of such files")
    actions = config.add_subparsers(title="commands", required=True, metavar="COMMAND")

    check = actions.add_parser("check", help="explain an NNCF config in words")
    check.add_argument("file", metavar="FILE", help="NNCF config: JSON, with comments and trailing commas.")
    check.add_argument("--model_name_or_path", help="Check it for this model: a local directory, or a hub id.")
    check.add_argument("--json", action="store_true", help="Print one JSON document instead of words.")
    check.set_defaults(run=_check)

    schema = actions.add_parser("schema", help="print the JSON Schema of NNCF configs, for editors")
    schema.add_argument("--output", metavar="FILE", help="Write it there instead.")
    schema.set_defaults(run=_schema)

    for name, command in STAGES.items():
        commands.add_parser(name, help=command.summary, add_help=False)
    return parser


def _check(chosen: argparse.Namespace) -> None:
    from bootstrapnas.pipeline.config_check import explain

    explanation = explain(chosen.file, chosen.model_name_or_path)
    if chosen.json:
        print(json.dumps(explanation.to_json(), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from bootstrapnas.pipeline.config_text import show

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
