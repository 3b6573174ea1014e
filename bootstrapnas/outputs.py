"""Which tensors a task reads from a model, and how their rows are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np

INDEX = "index"
"""Key of a batch's tensor of row numbers in the data set, shape [batch]."""
MASK = "attention_mask"
"""Key of a batch's mask, shape [batch, tokens]: 0 where a row is padded."""
TEACHER = "teacher_"
"""What the columns and batch keys of a teacher's outputs begin with; the output's name follows."""

LABELS, TOKENS, VALUE = "labels", "tokens", "value"

Outputs: TypeAlias = "dict[str, list[np.ndarray]]"
"""Output name -> one float32 array a row, in the order of the data set, without the batch axis and without padding."""


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor that a model returns.

    Attributes
    ----------
    name
        Its name in a Hugging Face model's output.
    axes
        Its axes after that of the batch, separated by blanks. ``labels`` are the task's classes, ``tokens`` those of
        the input. A softmax runs over the last one; ``value`` is a number that no softmax applies to.
    """

    name: str
    axes: str = LABELS

    @property
    def last(self) -> str:
        """The axis that a softmax runs over, or ``value``."""
        return self.axes.split()[-1]

    @property
    def per_token(self) -> bool:
        """Whether a row's array is as long as its tokens."""
        return TOKENS in self.axes.split()


LOGITS = Output("logits")
