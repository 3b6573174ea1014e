"""Progress of long work on the terminal: a bar where there is a terminal, a line now and then where there is none."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
"""Where progress and notices go; results that a program may read go to standard output."""

SILENCE = 60.0
"""Seconds that a log stays silent at most while a stage is young; later a fifth of the time that it has taken."""


def notice(text: str) -> None:
    """Print a line about what is happening."""
    console.print(text, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning that the user should read."""
    console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Return a time as a person would say it: ``95 s``, ``25 min``, ``2 h 5 min``."""
    minutes = round(seconds / 60)
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class Ticker:
    """A progress bar over `total` steps; without a terminal a line per tenth, and more where a tenth takes minutes.

    Use as a context manager and call `update` with the number of steps done and a few words on the state.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, max(total, 1)
        self._started = time.monotonic()
        self._told = self._started
        self._last_decile = -1
        self._first: int | None = None  # where a resumed stage sets in: its pace is that of the steps since
        self._progress: Progress | None = None
        if sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[state]}"),
                console=console,
            )
            self._task = self._progress.add_task(title, total=self.total, state="")

    def __enter__(self) -> Ticker:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, done: int, state: str = "") -> None:
        """Show that `done` of the steps are done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, state=state)
            return
        decile, now = 10 * done // self.total, time.monotonic()
        # The first tenth of a long stage may take an hour: the log shows before that that it moves, and its pace.
        silent = now - self._told > max(SILENCE, (now - self._started) / 5)
        if decile > self._last_decile or silent:
            self._last_decile, self._told = decile, now
            parts = [f"{self.title}: {done}/{self.total}", *self._times(done), *([state] if state else [])]
            notice(", ".join(parts))

    def _times(self, done: int) -> list[str]:
        """Return how long it has taken and, once a pace is known, how long it will."""
        seconds, first = time.monotonic() - self._started, self._first
        if first is None:
            first = self._first = done
        found = [duration(seconds)]
        if first < done < self.total:
            found.append(f"{duration(seconds * (self.total - done) / (done - first))} left")
        return found
