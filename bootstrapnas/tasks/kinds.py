"""The registry of kinds of tasks. To add one: a `Kind` in a file beside this and a line here."""

from __future__ import annotations

from bootstrapnas.tasks.instructions import INSTRUCTIONS
from bootstrapnas.tasks.kind import Kind
from bootstrapnas.tasks.language_modelling import LANGUAGE_MODELLING
from bootstrapnas.tasks.masked_language_modelling import MASKED_LANGUAGE_MODELLING
from bootstrapnas.tasks.question_answering import QUESTION_ANSWERING
from bootstrapnas.tasks.sequence import CLASSIFICATION, REGRESSION
from bootstrapnas.tasks.token_classification import TOKEN_CLASSIFICATION

KINDS: dict[str, Kind] = {
    "single_label_classification": CLASSIFICATION,
    "regression": REGRESSION,
    "token_classification": TOKEN_CLASSIFICATION,
    "question_answering": QUESTION_ANSWERING,
    "language_modelling": LANGUAGE_MODELLING,
    "masked_language_modelling": MASKED_LANGUAGE_MODELLING,
    "instructions": INSTRUCTIONS,
}
"""Problem type of a task -> its kind."""
