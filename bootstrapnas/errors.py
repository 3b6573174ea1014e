"""Mistakes that a user can mend, told in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: a file, a flag, a config key, a name.

    The message is one line that says what is wrong, where, and what would be right. The command lines print it
    without a traceback and exit with status 2; in Python it is an ordinary ``ValueError``.
    """


def near_miss(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known word closest to `word`, or ``""`` when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(words: Iterable[str]) -> str:
    """Return the words sorted and joined with commas, for use in messages."""
    return ", ".join(sorted(words))
