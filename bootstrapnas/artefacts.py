"""Files that stages hand to each other: written atomically, versioned, traceable, never pickles.

A *stage* is a function from files to files. Its output directory carries ``stage.json``: which stage made it,
with which settings, from which inputs (by content digest), and whether it is complete. The same call on the same inputs
finds the finished directory again; after a kill it resumes; anything else is refused rather than overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootstrapnas.errors import UserError
from bootstrapnas.progress import warn

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
FULL_BYTES = 1 << 20
"""A disk with less room than this, where writing failed, counts as full."""
STAGE_FILE = "stage.json"
_UNTRACKED = (STAGE_FILE, "README.md")  # a model card is rewritten when its subnet has been measured


class OtherRunError(UserError):
    """An output directory holds a run with other settings or inputs."""

    def __init__(
        self,
        directory: Path,
        difference: str,
        advice: str = "choose another --output_dir or pass --overwrite_output_dir",
    ) -> None:
        super().__init__(f"output_dir {directory} holds another run ({difference}); {advice}")
        self.directory, self.difference = directory, difference


class BusyError(UserError):
    """Another process works in an output directory."""


# -- single files ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around a library's call that writes `path`: what it raises when it cannot (a full disk, mostly) is a `UserError`.

    Libraries in C++ and Rust raise no OSError, but RuntimeError, an exception of their own or (tokenizers) a bare one.
    """
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, OSError | RuntimeError | SafetensorError) and type(error) is not Exception:
            raise
        raise UserError(f"cannot write {path}: {_why_not_written(path, error)}") from error


def _why_not_written(path: str | os.PathLike[str], error: Exception) -> str:
    """Return what an error says, or should have said of a full disk (OpenVINO: "iostream error")."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    there = next(place for place in (Path(path).absolute(), *Path(path).absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < FULL_BYTES:
        return os.strerror(errno.ENOSPC)
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # What did not fit has been deleted by now, so the disk looks less full than it was.
    return f"{said}; {free / 1e6:,.0f} MB are free there" if said.endswith("iostream error") else said


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it onto `path` when the block succeeds, delete it when it fails."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp is private; an artefact has the permissions of any other file
        os.replace(temporary, path)
    except OSError as error:  # a full disk, mostly
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the whole new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file that this project wrote.

    Raises
    ------
    UserError
        If the file is missing, unreadable or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is corrupt: not JSON at line {error.lineno}: {error.msg}") from error


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file, atomically; `metadata` is any JSON-able mapping. The same again has the same bytes."""
    from safetensors.torch import save_file

    with replacing(path) as temporary, writing(path):
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={"format": "pt", "bootstrapnas": json.dumps({"format": FORMAT, **metadata})},
        )
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, which its library writes in any order: equal contents, equal bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_tensors`: the tensors by name and the metadata.

    Raises
    ------
    UserError
        If the file is missing, not safetensors, cut short, or of a newer format than this version knows.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = json.loads((file.metadata() or {}).get("bootstrapnas", "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is corrupt: {error}") from error
    check_format(path, metadata)
    return tensors, metadata


def check_format(path: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
    """Raise `UserError` if an artefact's header names a format newer than this version writes."""
    if header.get("format", FORMAT) > FORMAT:
        raise UserError(f"{path} has format {header['format']}; this version reads up to {FORMAT}: update bootstrapnas")


# -- directories -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a fresh directory beside `path`; it replaces `path` when the block succeeds, and is deleted if not."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def empty_directory(directory: Path, keep: Collection[str] = ()) -> None:
    """Delete what a directory holds, not itself, which may be a link or where a disk is mounted.

    `STAGE_FILE` goes last: it says whose the rest is, should this be cut short.
    """
    try:
        for path in sorted(directory.iterdir(), key=lambda path: path.name == STAGE_FILE):
            if path.name in keep:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise UserError(f"cannot delete what {directory} holds: {error.filename}: {error.strerror or error}") from error


_held: dict[Path, int] = {}
"""The directories that this process holds, and the open file of each."""
_unlocked: set[int] = set()
"""The devices that have been told to have no locks."""


def hold(directory: Path) -> None:
    """Keep other processes out of a directory, made where it is missing, until `release` or the end of this one.

    Where its file system has no locks, it is not kept: a warning says so, once for each.

    Raises
    ------
    BusyError
        If another process holds it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write output_dir {directory}: {error.strerror or error}") from error
    place = directory.resolve()
    if place in _held:
        if os.path.samestat(os.fstat(_held[place]), place.stat()):
            return
        release(place)  # it was deleted, and made again
    file = os.open(place, os.O_RDONLY)  # the directory itself: nothing is left behind
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise BusyError(f"another run works in {directory}: wait until it has ended, or choose another") from None
    except OSError as error:  # NFS, for one, locks no directories
        device = os.fstat(file).st_dev
        if device not in _unlocked:
            _unlocked.add(device)
            warn(
                f"the file system of {directory} locks no directories ({error.strerror or error}): take care that no "
                "two runs write the same one at once"
            )
    _held[place] = file


def release(directory: Path) -> None:
    """Let other processes into a directory again, if this one held it."""
    file = _held.pop(directory.resolve(), None)
    if file is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # forked processes may have the file open as well
        os.close(file)


@contextlib.contextmanager
def holding(directory: Path) -> Iterator[None]:
    """Around what works in a directory: keep other processes out of it; leave none where there was none, if empty.

    Where this process holds the directory already, it goes on holding it.
    """
    existed, held = directory.exists(), directory.resolve() in _held
    hold(directory)
    try:
        yield
    finally:
        if not held:
            release(directory)
        if not existed:
            with contextlib.suppress(OSError):
                directory.rmdir()


def digest(path: str | os.PathLike[str]) -> str:
    """Return a short content digest of a file, or of a directory's files (no stage.json, README.md, subdirectories)."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    total = hashlib.sha256()
    for name in _own_files(path):
        total.update(f"{name}:{digest(path / name)}\n".encode())
    return total.hexdigest()[:16]


def _own_files(directory: Path) -> list[str]:
    """Return the files that make up an artefact: those that its stage listed, else all; sorted."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # of another origin, or unfinished
        header = json.loads((directory / STAGE_FILE).read_text(encoding="utf-8"))
        if header["status"] == "complete":
            return sorted(name for name in header["files"] if (directory / name).is_file())
    return sorted(p.name for p in directory.iterdir() if p.is_file() and p.name not in _UNTRACKED)


@dataclass
class Stage:
    """One stage's output directory, opened by `open_stage`."""

    directory: Path
    name: str
    settings: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    finished: bool = False
    resuming: bool = False
    result: dict[str, Any] = field(default_factory=dict)

    def _write(self, status: str) -> None:
        files = {}
        if status == "complete":
            files = {
                p.relative_to(self.directory).as_posix(): p.stat().st_size
                for p in sorted(self.directory.iterdir())
                if p.is_file() and p.name not in _UNTRACKED
            }
        write_json(
            self.directory / STAGE_FILE,
            {
                "format": FORMAT,
                "stage": self.name,
                "status": status,
                "settings": self.settings,
                "inputs": self.inputs,
                "files": files,
                "result": self.result,
                "versions": versions(),
            },
        )

    def complete(self, **result: Any) -> None:
        """Mark the directory as complete; `result` (figures worth keeping) goes into stage.json."""
        self.result = result
        self.finished = True
        self._write("complete")
        release(self.directory)


def open_stage(
    directory: str | os.PathLike[str],
    name: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str | os.PathLike[str] | None],
    *,
    overwrite: bool = False,
    reusable: Collection[str] = (),
    effective: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> Stage:
    """Open the output directory of a stage: fresh, to be resumed, or already finished (`Stage.finished`).

    Unless it is finished, this process holds it until it is.

    Parameters
    ----------
    directory
        Where the stage writes.
    name
        The stage, for example ``"importance"``.
    settings
        Everything that decides the result (JSON-able). A directory made with other settings is refused.
    inputs
        What the stage reads, by role: paths (identified by content) or hub ids. `None` entries are left out.
    overwrite
        Delete what the directory holds of an earlier stage and start afresh.
    reusable
        Names of files that a run with other settings may go on with, if they are all that a failed one has made.
    effective
        From settings, this run's or those found there, to what they come to: runs are held against each other by that.

    Raises
    ------
    UserError
        If the directory holds something else, cannot be written, or another process works in it.
    """
    directory = Path(directory)
    decided: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
    described = {role: _identify(value) for role, value in inputs.items() if value is not None}
    stage = Stage(directory, name, decided, described)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"output_dir {directory} is a file")
    hold(directory)
    with contextlib.ExitStack() as until_open:
        until_open.callback(release, directory)
        if any(directory.iterdir()):
            if not (directory / STAGE_FILE).is_file():
                raise UserError(f"output_dir {directory} is not empty and was not made by this program; choose another")
            _refuse_own_input(directory, inputs)
            if not overwrite:
                found = _read_header(directory / STAGE_FILE)
                difference = _difference(stage, found, effective)
                # Another run that failed before it made anything holds nothing to protect.
                made = {path.name for path in directory.iterdir()} - {STAGE_FILE, *reusable}
                if difference and (found["status"] == "complete" or made):
                    raise OtherRunError(directory, difference)
                if not difference:
                    stage.finished = found["status"] == "complete"
                    stage.resuming = not stage.finished
                    stage.result = found["result"]
                    if stage.finished:
                        _check_files(directory, found)
                        return stage
        if not stage.resuming:
            empty_directory(directory, () if overwrite else reusable)
            stage._write("running")
        until_open.pop_all()
    return stage


def read_stage(directory: str | os.PathLike[str], *names: str) -> dict[str, Any]:
    """Read stage.json of a finished artefact, made by one of the stages `names` (without any: by whichever).

    Raises
    ------
    UserError
        If the directory is missing, was made by another stage, is unfinished, or has lost or truncated files.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory} does not exist or is not a directory")
    wanted = " or ".join(names)
    if not (directory / STAGE_FILE).is_file():
        raise UserError(
            f"{directory} is not the output of {f'the stage {wanted}' if names else 'any stage'}: "
            f"it has no {STAGE_FILE}"
        )
    found = _read_header(directory / STAGE_FILE)
    if names and found["stage"] not in names:
        raise UserError(f"{directory} is the output of the stage {found['stage']}, not of {wanted}")
    if found["status"] != "complete":
        raise UserError(f"{directory} is unfinished: run its {found['stage']} stage again, it resumes")
    _check_files(directory, found)
    return found


def stage_of(directory: str | os.PathLike[str]) -> str | None:
    """Return the name of the stage that made a directory, finished or not; None if none did."""
    with contextlib.suppress(UserError):
        return str(_read_header(Path(directory) / STAGE_FILE)["stage"])
    return None


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide results."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("bootstrapnas", "torch", "transformers", "openvino", "nncf"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _identify(value: str | os.PathLike[str]) -> dict[str, str]:
    path = Path(value)
    if path.exists():
        return {"path": str(value), "digest": digest(path)}
    return {"id": str(value)}


def _read_header(path: Path) -> dict[str, Any]:
    header = read_json(path)
    if not isinstance(header, dict):
        raise UserError(f"{path} is corrupt: not a JSON object")
    check_format(path, header)
    for key in ("stage", "status", "settings", "inputs", "files", "result"):
        if key not in header:
            raise UserError(f"{path} is corrupt: it has no {key!r}")
    return header


def _check_files(directory: Path, found: Mapping[str, Any]) -> None:
    for name, size in found["files"].items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"{directory} is damaged: {name} is missing; make it again with --overwrite_output_dir")
        if path.stat().st_size != size:
            raise UserError(
                f"{directory} is damaged: {name} has {path.stat().st_size} bytes, not {size}; "
                "make it again with --overwrite_output_dir"
            )


def _refuse_own_input(directory: Path, inputs: Mapping[str, str | os.PathLike[str] | None]) -> None:
    for role, value in inputs.items():
        if value is not None and Path(value).exists() and Path(value).resolve().is_relative_to(directory.resolve()):
            raise UserError(f"output_dir {directory} holds the stage's own input {value} ({role}); choose another")


def _difference(
    stage: Stage, found: Mapping[str, Any], effective: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> str:
    """Return what another run in the same directory did otherwise, or an empty string."""

    def contents(inputs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
        return {role: entry.get("digest") or entry["id"] for role, entry in inputs.items()}

    if found["stage"] != stage.name:
        return f"made by the stage {found['stage']}, not {stage.name}"
    old = {**_flat(effective(found["settings"])), **contents(found["inputs"])}
    new = {**_flat(effective(stage.settings)), **contents(stage.inputs)}
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    shown = ", ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in changed[:3])
    return shown + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of a setting, such as the task's, by dotted names: what differs can be told alone."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return flat
