"""Data sets that need no download, and how they are written for later stages."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from bootstrapnas.artefacts import replacing_directory
from bootstrapnas.tasks import builtin_text
from bootstrapnas.tasks.arithmetic import word_problems

BUILTIN_TEXT = "builtin-text"

Split = list[dict[str, str]]


def _docstrings() -> dict[str, Split]:
    return builtin_text.scan(builtin_text.find_packages())


BUILTINS: dict[str, Callable[[], dict[str, Split]]] = {
    BUILTIN_TEXT: _docstrings,
    "builtin-lm": _docstrings,
    "masked-builtin-lm": _docstrings,
    "builtin-arithmetic": word_problems,
}
"""Name of a task -> its rows by split."""


def export_builtin(directory: str | os.PathLike[str], task_name: str = BUILTIN_TEXT) -> Path:
    """Write a built-in data set as ``{train,validation,test}.jsonl``; return `directory`.

    The directory is put in place whole, and serves as `dataset_dir` of the task: later stages then need no packages
    and see the same rows after an upgrade.
    """
    rows = BUILTINS[task_name]()
    with replacing_directory(directory) as temporary:
        for split, split_rows in rows.items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in split_rows)
            (temporary / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return Path(directory)
