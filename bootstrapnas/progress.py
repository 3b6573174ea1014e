"""Progress of long work on the terminal: a bar where there is a terminal, a line now and then where there is none."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
"""Where progress and notices go; results that a program may read go to standard output."""


def notice(text: str) -> None:
    """Print a line about what is happening."""
    console.print(text, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning that the user should read."""
    console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)


class Ticker:
    """A progress bar (or, without a terminal, about ten lines) over `total` steps.

    Use as a context manager and call `update` with the number of steps done and a few words on the state.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, max(total, 1)
        self._started = time.monotonic()
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
        decile = 10 * done // self.total
        if decile > self._last_decile:
            self._last_decile = decile
            parts = [f"{self.title}: {done}/{self.total}", *self._times(done), *([state] if state else [])]
            notice(", ".join(parts))

    def _times(self, done: int) -> list[str]:
        """Return how long it has taken and, once a pace is known, how long it will."""
        seconds, first = time.monotonic() - self._started, self._first
        if first is None:
            first = self._first = done
        found = [f"{seconds:.0f} s"]
        if first < done < self.total:
            found.append(f"{seconds * (self.total - done) / (done - first):.0f} s left")
        return found
