"""Which tensors a task reads from a model, and how their rows are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

INDEX = "index"
"""Key of a batch's tensor of row numbers in the data set, shape [batch]."""
GROUP = "group"
"""Column of features: rows of the same number are measured together, as their texts begin alike."""
MASK = "attention_mask"
"""Key of a batch's mask, shape [batch, tokens]: 0 where a row is padded."""
TEACHER = "teacher_"
"""What the columns and batch keys of a teacher's outputs begin with; the output's name follows."""

IGNORED = -100
"""The target that Hugging Face's losses pass over."""

LABELS, TOKENS, VALUE, VOCABULARY = "labels", "tokens", "value", "vocabulary"

Outputs: TypeAlias = "dict[str, list[np.ndarray]]"
"""Output name -> one float32 array a row, in the order of the data set, without the batch axis and without padding."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """What is kept of an output that is too large to keep: the logits of a vocabulary at every token.

    Attributes
    ----------
    function
        ``(output, batch)`` to what is kept by name, [batch, axes] each, on the output's device.
    outputs
        What it gives.
    reads
        Keys of the batch that it reads and that are no inputs of the model.
    start
        Of a causal model: the key, one of `reads`, of a batch's tensor [batch] that says which token of a row is the
        first one whose foretelling counts. Where a batch has it, the function may get the outputs of the last tokens
        only, at least from the token before that.
    """

    function: Callable[[Tensor, Mapping[str, Tensor]], Mapping[str, Tensor]]
    outputs: tuple[Output, ...]
    reads: tuple[str, ...] = ()
    start: str | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor that a model returns.

    Attributes
    ----------
    name
        Its name in a Hugging Face model's output.
    axes
        Its axes after that of the batch, separated by blanks. ``labels`` are the task's classes, ``tokens`` those of
        the input. A softmax runs over the last one; ``value`` is a number that no softmax applies to; ``vocabulary``
        are the tokens that may stand at a place.
    reduction
        What is kept of it over a data set; None keeps it as it is.
    ahead
        Of a vocabulary: how many places after a token that is which its logits speak of; 1 of a causal model.
    """

    name: str
    axes: str = LABELS
    reduction: Reduction | None = None
    ahead: int = 0

    @property
    def last(self) -> str:
        """The axis that a softmax runs over, or ``value``."""
        return self.axes.split()[-1]

    @property
    def per_token(self) -> bool:
        """Whether a row's array is as long as its tokens."""
        return TOKENS in self.axes.split()

    @property
    def kept(self) -> tuple[Output, ...]:
        """What is kept of it over a data set: itself, or what its reduction gives."""
        return (self,) if self.reduction is None else self.reduction.outputs


LOGITS = Output("logits")
