"""Command lines made of stages: parsing, help, and one line for a user's mistake."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bootstrapnas.artefacts import STAGE_FILE, BusyError, hold, release
from bootstrapnas.errors import UserError, near_miss

if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: its one-line summary and the module that has ``GROUPS`` (dataclasses of flags) and ``run``.

    ``run`` takes one instance per group, in order, and the keyword ``typed``: the flags that the user gave. A first
    argument that is no flag is the value of the flag `first`.
    """

    summary: str
    module: str
    first: str = ""

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)


class Typed(dict[str, Any]):
    """The flags that the user gave, by name, with their values; and the defaults of all that the command has."""

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        super().__init__(given)
        self.defaults = defaults


Commands = Mapping[str, Command]


def main(program: str, description: str, commands: Commands, argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit status: 0, or 2 after a user's mistake (told in one line)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(program, description, {name: command.summary for name, command in commands.items()}))
        return 0 if arguments else 2
    return guarded(program, lambda: execute(program, commands, arguments[0], arguments[1:]))


def guarded(program: str, action: Callable[[], object]) -> int:
    """Run an action; return the exit status: 0, or 2 after a user's mistake (told in one line).

    As a shell has it, it is 130 after Ctrl-C, and 141 when standard output was closed by its reader.
    """
    try:
        action()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted; the same command resumes", file=sys.stderr)
        return 130
    return 0


def execute(program: str, commands: Commands, name: str, arguments: Sequence[str]) -> Any:
    """Parse the flags of one subcommand and run it; return what its ``run`` returns.

    Raises
    ------
    UserError
        For an unknown command or flag, a missing or malformed value, or whatever the stage finds wrong.
    """
    check_command(program, commands, name)
    check_processes(name)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    without_telemetry()
    module, first = commands[name].load(), commands[name].first
    if first and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{first}", *arguments]
    groups, typed = parse(f"{program} {name}", module.__doc__ or "", module.GROUPS, arguments)
    output = Path(typed["output_dir"]) if "output_dir" in typed else None
    existed = output is not None and output.exists()
    try:
        return module.run(*groups, typed=typed)
    except UserError:
        if output is not None and not existed:
            _delete_unused(output)
        raise
    finally:
        if output is not None:
            release(output)


def without_telemetry() -> None:
    """Keep OpenVINO and nncf from telling Intel what was converted: without the package that does, they use a stub.

    A consent file in the user's home would do as well, but that is the user's; and there is no variable for it.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def check_command(program: str, commands: Iterable[str], name: str) -> None:
    """Raise `UserError` if a program has no such command."""
    if name not in commands:
        raise UserError(f"unknown command {name!r}{near_miss(name, commands)}; see {program} --help")


def check_processes(name: str) -> None:
    """Raise `UserError` if this process is one of several, all of which would write the same files."""
    count = os.environ.get("WORLD_SIZE", "1")  # of torchrun and accelerate launch
    if count.isdecimal() and int(count) > 1:
        raise UserError(
            f"{name} was started as {count} processes (torchrun, accelerate launch), which would write the same files; "
            "start one: it trains on every GPU that it sees"
        )


def _delete_unused(directory: Path) -> None:
    """Delete the directory of a stage that failed before it wrote anything: the command may be given otherwise now."""
    if directory.is_dir() and all(path.name == STAGE_FILE for path in directory.iterdir()):
        with contextlib.suppress(BusyError):  # another run has just made it
            hold(directory)
            shutil.rmtree(directory)


def parse(
    program: str, description: str, groups: Sequence[Any], arguments: Sequence[str]
) -> tuple[tuple[Any, ...], Typed]:
    """Return the filled dataclasses and the flags that were typed."""
    parser = _parser()(
        list(groups),
        prog=program,
        description=description.split("\n\n")[0],
        allow_abbrev=False,
        formatter_class=_Formatter,
    )
    known = {option: action.dest for action in parser._actions for option in action.option_strings}
    for argument in arguments:
        flag = argument.split("=")[0]
        if flag.startswith("--") and flag not in known:
            raise UserError(f"unknown flag {flag}{near_miss(flag, known)}; see {program} --help")
    try:
        *instances, left = parser.parse_args_into_dataclasses(
            args=list(arguments), look_for_args_file=False, return_remaining_strings=True
        )
    except (ValueError, ImportError) as error:  # Hugging Face checks its arguments against each other
        raise UserError(str(error)) from error
    if left:
        raise UserError(f"unexpected argument {left[0]!r}; see {program} --help")
    dests = [known[argument.split("=")[0]] for argument in arguments if argument.split("=")[0] in known]
    typed = {
        dest: getattr(instance, dest)
        for dest in dests
        for instance in instances
        if dest in {field.name for field in dataclasses.fields(instance)}
    }
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    return tuple(instances), Typed(typed, {name: parser.get_default(name) for name in names})


def to_arguments(flags: Mapping[str, Any]) -> list[str]:
    """Turn a mapping of flags, as in a recipe, into command-line arguments. A list gives several values."""
    arguments = []
    for name, value in flags.items():
        if value is None:
            continue
        arguments.append(f"--{name}")
        arguments.extend(str(v) for v in (value if isinstance(value, list) else [value]))
    return arguments


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose complaints are `UserError`, for commands with few flags, which need no Hugging Face."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        chosen, left = self.parse_known_args(args, namespace)
        if left:
            parser = getattr(chosen, "parser", self)  # that of the subcommand
            if left[0].startswith("-"):
                near = near_miss(left[0], parser._option_string_actions)
                raise UserError(f"unknown flag {left[0]}{near}; see {parser.prog} --help")
            raise UserError(f"unexpected argument {left[0]!r}; see {parser.prog} --help")
        return chosen

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.option_strings and action.option_strings[0].startswith("--no_") and action.const is False:
            return f"The same as --{action.dest} False."  # made by Hugging Face's parser, which repeats the help
        return action.help if action.default is None else super()._get_help_string(action)


def _parser() -> Any:
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(f"{message}; see {self.prog} --help")

    return Parser


def overview(program: str, description: str, summaries: Mapping[str, str]) -> str:
    """Return what a program prints about itself: its commands, a line each."""
    width = max(map(len, summaries))
    lines = [f"usage: {program} COMMAND [flags]", "", description, "", "commands:"]
    lines += [f"  {name:<{width}}  {summary}" for name, summary in summaries.items()]
    lines += ["", f"{program} COMMAND --help lists a command's flags."]
    return "\n".join(lines)
