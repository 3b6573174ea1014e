"""The registry of kinds of tasks. To add one: a `Kind` in a file beside this and a line here."""

from __future__ import annotations

from bootstrapnas.tasks.kind import Kind
from bootstrapnas.tasks.sequence import CLASSIFICATION, REGRESSION

KINDS: dict[str, Kind] = {
    "single_label_classification": CLASSIFICATION,
    "regression": REGRESSION,
}
"""Problem type of a task -> its kind."""
