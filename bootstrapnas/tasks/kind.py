"""What a kind of task is. Everything that knows one kind from another goes through this."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootstrapnas.outputs import Output, Outputs

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from bootstrapnas.tasks.files import Table
    from bootstrapnas.tasks.generation import Generation
    from bootstrapnas.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Head:
    """The head that a kind of task needs.

    Attributes
    ----------
    auto_class
        Name of the Hugging Face auto class that loads models with it.
    suffix
        What class names of such models end in, one or several.
    problem_type
        What ``config.problem_type`` must be for the right loss; None where the head has one loss only.
    """

    auto_class: str
    suffix: str | tuple[str, ...]
    problem_type: str | None = None

    def load_class(self) -> Any:
        """Return the auto class itself."""
        import transformers

        return getattr(transformers, self.auto_class)

    def is_in(self, architectures: list[str] | None) -> bool:
        """Return whether a config's ``architectures`` name a model that has this head."""
        return any(name.endswith(self.suffix) for name in architectures or ())


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of task: from a table to rows, from rows to features, from outputs to predictions and metrics.

    A row is what a user counts; a feature is what the model sees at once. A kind may make several features of a row.

    Attributes
    ----------
    head
        The head that models need.
    outputs
        The outputs of that head which carry its result.
    targets
        Columns of the features that the model computes its loss from: a number a feature, or a list of one a token.
    check
        Raises `UserError` if a `Task` is not a task of this kind.
    num_labels
        The width of the head.
    metrics
        The names of all metrics of a task.
    usual_metrics
        Those that are reported of a task that says nothing else; the first one selects.
    rows
        ``(spec, table, split, source)`` to the rows of a split, with the column `ROW`; `source` is for messages.
    is_labelled
        ``(spec, label)``: whether a test row has what a prediction can be held against.
    features
        ``(spec, rows, tokenizer)`` to ``input_ids`` and what else the tokenizer gives, `targets`, ``length`` in
        tokens, and whatever `decode` wants, in the order of the rows.
    decode
        ``(spec, outputs, rows, features)`` to a prediction a row (of texts in a row: a block), as `measure` and `show`
        take it.
    measure
        ``(spec, predictions, rows)`` to every metric.
    show
        ``(spec, predictions, rows)`` to what is written about each row: an object of JSON, whose ``index`` is the name
        of the row (of texts in a row: the number of the block).
    optional_columns
        Columns of a table that rows are made with where they are there, besides the texts' and the label's.
    arrange
        ``(spec, table)`` to the table whose rows count, where those of a file are something else.
    less_is_better
        The metrics of which less is better.
    means
        The metrics that are means over rows of a number from 0 to 1.
    read
        ``(spec, path)`` to the table of a file, where files have other columns than the task's.
    probes
        What a model is measured with, where that is not what it is trained with; as `features`.
    generation
        ``(spec)`` to how texts are written, if a model is measured by those; `decode` gets them instead of `outputs`.
    corpus
        ``(spec, rows)`` to the texts as models see them, where those are more than the rows' own.
    causal
        Whether a token sees those before it only: rows are padded on the right, and with any token.
    """

    head: Head
    outputs: tuple[Output, ...]
    targets: tuple[str, ...]
    check: Callable[[Task], None]
    num_labels: Callable[[Task], int]
    metrics: Callable[[Task], tuple[str, ...]]
    usual_metrics: tuple[str, ...]
    rows: Callable[[Task, Table, str, str], Dataset]
    is_labelled: Callable[[Task, Any], bool]
    features: Callable[[Task, Dataset, PreTrainedTokenizerBase], Dataset]
    decode: Callable[[Task, Outputs, Dataset, Dataset], Sequence[Any]]
    measure: Callable[[Task, Sequence[Any], Dataset], dict[str, float]]
    show: Callable[[Task, Sequence[Any], Dataset], list[dict[str, Any]]]
    optional_columns: tuple[str, ...] = ()
    arrange: Callable[[Task, Table], Table] | None = None
    less_is_better: tuple[str, ...] = ()
    means: tuple[str, ...] = ()
    read: Callable[[Task, Path], Table] | None = None
    probes: Callable[[Task, Dataset, PreTrainedTokenizerBase], Dataset] | None = None
    generation: Callable[[Task], Generation | None] | None = None
    corpus: Callable[[Task, Dataset], Iterator[str]] | None = None
    causal: bool = False
