"""A data set of real text that needs no download: prose of installed packages' docstrings, labelled by package.

A row is 20 to 48 words of the leading prose of one public docstring, with every package's name and alias masked; the
label is the package it was taken from. Sources are parsed, never imported. The rows are split by module, so that a
validation or test row comes from a file the training never saw, and near copies are dropped whichever split they fall
into. The same packages give the same rows; other versions of the packages give others, so what is to be compared later
is exported once (`builtin.export_builtin`) and read from there.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import hashlib
import importlib.util
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bootstrapnas.errors import UserError, listed

PACKAGES = ("matplotlib", "networkx", "pandas", "scipy", "sklearn", "sympy", "torch", "transformers")
MIN_WORDS, MAX_WORDS = 20, 48
_FEWEST_CLASSES = 4
# Rows per class.
_CAPS = {"train": 800, "validation": 125, "test": 125}
_ROWS_PER_MODULE = 30  # so that no single long file is a class
_SHINGLE = 5  # words
_MOST_SEEN = 0.5  # a row with a larger share of shingles seen before is a near copy

MASK = "package"
# A word that holds one of these names is masked whole, an alias only where it stands alone.
_NAMES = (*PACKAGES, "numpy", "scikit", "huggingface")
_ALIASES = ("np", "nx", "pd", "plt", "mpl", "sp", "hf")
_MASKED = re.compile(
    rf"hugging[ -]face|scikit[- ]learn|\w*(?:{'|'.join(_NAMES)})\w*"
    rf"|(?<![a-z0-9])(?:{'|'.join(_ALIASES)})(?![a-z0-9])",
    re.IGNORECASE,
)
# Tests speak of cases rather than the package; vendored code is another package's text under the wrong label.
_SKIPPED_DIRECTORIES = frozenset(
    {"tests", "test", "testing", "externals", "_external", "_vendor", "_vendored", "vendor", "array_api_compat",
     "array_api_extra", "cobyqa", "highspy", "third_party", "__pycache__"}
)  # fmt: skip

_SECTION = re.compile(
    r"^\s*(?:(?:args|arguments|keyword args|params|parameters|returns?|yields?|raises|attributes|examples?|usage|"
    r"references?|notes?|see also|warnings?|inputs?|outputs?|shape|methods?|todo)\b[^.]{0,30}:{1,2}\s*$"
    r"|[-=~*^]{3,}[-=~*^\s]*$|\w+ (?:\(.*\))? ?:(?:\s|$)|[:@]\w+.*:|>>> |\.\. |```)",
    re.IGNORECASE,
)
_UNDERLINE = re.compile(r"^\s*[-=~*^]{3,}[-=~*^\s]*$")
_CLEANING = (
    (re.compile(r":math:`[^`]*`|\$[^$]*\$"), " "),
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),  # Markdown link
    (re.compile(r":ref:`[^`<]*`"), " "),  # the target of a reference that names no title
    (re.compile(r":[\w:.+-]+:`[~.!]*([^`<]*)(?:<[^`]*>)?`"), r"\1"),  # role, with or without a title
    (re.compile(r"`([^`<]+)<[^`]*>`_*"), r"\1"),  # link with a title
    (re.compile(r"https?://\S+|www\.\S+"), " "),
    (re.compile(r"\[\d+\]_|\|\w+\|_?"), " "),  # footnotes and substitutions
    (re.compile(r"[`*~|$\\]+"), ""),
    (re.compile(r":{2,}"), ":"),
    (re.compile(r"\s+([.,;:])(?=\s|$)"), r"\1"),
    (re.compile(r"\s+"), " "),
)
_DOCUMENTED = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*")
_PROSE_WORD = re.compile(r"^[(\"']?[A-Za-z][A-Za-z'’-]*[)\"']?[.,;:!?]?$")


def find_packages(names: tuple[str, ...] = PACKAGES) -> dict[str, Path]:
    """Return the source directory of each installed package of `names`; nothing is imported.

    Raises
    ------
    UserError
        If fewer than four of them are installed.
    """
    found = {}
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            found[name] = Path(next(iter(spec.submodule_search_locations)))
    if len(found) < _FEWEST_CLASSES:
        raise UserError(
            f"task builtin-text needs the sources of at least {_FEWEST_CLASSES} of the packages {listed(names)}; "
            f"installed: {listed(found) or 'none'}; pip install pandas sympy, or pass --train_file"
        )
    return found


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Hold the cyclic garbage collector: it would traverse growing syntax trees over and over, and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_gc()
def scan(packages: Mapping[str, Path], caps: Mapping[str, int] = _CAPS) -> dict[str, list[dict[str, str]]]:
    """Read the docstrings of `packages` into rows ``{"text": ..., "label": ...}``.

    Parameters
    ----------
    packages
        Label -> directory of Python sources.
    caps
        Rows per label, by split. A label with less text than that fills its splits in the same proportions: each
        module goes to the split that is the furthest behind.

    Returns
    -------
    dict
        The rows by split, in an order that is mixed and depends on nothing but the texts.
    """
    rows: dict[str, list[dict[str, str]]] = {split: [] for split in caps}
    seen: set[tuple[str, ...]] = set()
    for label in sorted(packages):
        taken = dict.fromkeys(caps, 0)
        for module in _modules(packages[label]):
            split = min(caps, key=lambda name: taken[name] / caps[name])
            most = min(caps[split] - taken[split], _ROWS_PER_MODULE)
            if most == 0:
                break  # the least filled split is full
            texts = _unseen(_texts(packages[label] / module), seen, most)
            rows[split] += [{"text": text, "label": label} for text in texts]
            taken[split] += len(texts)
    return {split: sorted(split_rows, key=lambda row: _hash(row["text"])) for split, split_rows in rows.items()}


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _modules(directory: Path) -> list[Path]:
    """Return the modules below `directory` in an order that is mixed but the same everywhere."""
    found = []
    for parent, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if name not in _SKIPPED_DIRECTORIES]
        found += [Path(parent, name).relative_to(directory) for name in files if name.endswith(".py")]
    return sorted(found, key=lambda path: (_hash(path.as_posix()), path))


def _texts(path: Path) -> Iterator[str]:
    """Yield the prose of each public docstring in the file `path`, in order of appearance.

    Private helpers are much alike in every package, and say little about theirs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # invalid escapes in other people's sources
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return  # written for another version of Python, or a template
    nodes: list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = [tree]
    while nodes:
        node = nodes.pop()
        children = (child for child in reversed(node.body) if isinstance(child, _DOCUMENTED))
        nodes += [child for child in children if not child.name.startswith("_")]
        text = prose(ast.get_docstring(node) or "")
        if text is not None:
            yield text


def prose(docstring: str) -> str | None:
    """Return the first `MAX_WORDS` words of a docstring's leading prose, masked; None if it has fewer than `MIN_WORDS`.

    The prose ends at the first section ("Parameters", "Args:", ...), field list, directive or doctest; indented
    paragraphs (code, tables) are passed over, markup is reduced to its words.
    """
    paragraphs: list[str] = []
    for paragraph in re.split(r"\n\s*\n", docstring):
        lines = paragraph.split("\n")
        if any(_UNDERLINE.match(line) for line in lines[1:2]):
            if paragraphs:
                break
            lines = lines[2:]  # a title
        ends = next((i for i, line in enumerate(lines) if _SECTION.match(line)), None)
        kept = lines[:ends]
        if kept and not kept[0].startswith((" ", "\t")):
            paragraphs.append(" ".join(kept))
        if ends is not None:
            break
    text = " ".join(paragraphs)
    if len(text.split()) < MIN_WORDS:  # most docstrings; cleaning adds no words
        return None
    for pattern, replacement in _CLEANING:
        text = pattern.sub(replacement, text)
    words = _MASKED.sub(MASK, text).split()[:MAX_WORDS]
    if len(words) < MIN_WORDS or sum(bool(_PROSE_WORD.match(word)) for word in words) < 0.75 * len(words):
        return None
    return " ".join(words)


def _unseen(texts: Iterable[str], seen: set[tuple[str, ...]], most: int) -> list[str]:
    """Return up to `most` of `texts` that are no near copies of what `seen` holds, and add them to it."""
    fresh: list[str] = []
    for text in texts:
        if len(fresh) == most:
            break
        words = [word.lower() for word in _WORD.findall(text)]
        shingles = {tuple(words[i : i + _SHINGLE]) for i in range(len(words) - _SHINGLE + 1)}
        if len(shingles & seen) <= _MOST_SEEN * len(shingles):
            fresh.append(text)
        seen |= shingles
    return fresh
