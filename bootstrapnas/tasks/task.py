"""A task as data: all that the kinds of tasks need to know of one."""

from __future__ import annotations

from dataclasses import dataclass

from bootstrapnas.tasks.known import KNOWN
from bootstrapnas.tasks.settings import AnswerSettings, InstructionSettings, MaskingSettings, ProblemType


@dataclass(frozen=True)
class Task:
    """A task: where its rows are and what is to be made of them.

    Parameters
    ----------
    task_name
        One of `KNOWN`, ``"builtin-text"``, or ``"files"``.
    text_columns
        The one or two columns that hold the text.
    label_names
        The classes in the order of their indices; empty where there are none.
    problem_type
        Which of `KINDS` it is.
    metric
        The metric that stages select by; empty takes the first of the task's.
    max_seq_length
        Tokens to which a row is cut.
    label_column
        The column that holds the label; empty if the rows have none.
    dataset_dir
        Local directory of the task's splits; None reads the hub or the installed packages (builtin-text).
    train_file, validation_file, test_file
        The splits of the task ``"files"``: JSON lines or CSV.
    val_set_size
        How many training rows are held out to validate, where there are no rows of their own for that; 0 trains on all.
    max_train_samples, max_validation_samples
        Sizes of random subsets; None takes all rows.
    seed
        Decides those subsets.
    answers
        How answers are looked for; of question answering only.
    instructions
        How instructions are put, learnt and measured; of such tasks only.
    masking
        Which tokens are hidden; of masked language modelling only.
    """

    task_name: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    problem_type: ProblemType
    metric: str
    max_seq_length: int
    label_column: str = "label"
    dataset_dir: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    test_file: str | None = None
    val_set_size: int | None = None
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    seed: int = 0
    answers: AnswerSettings | None = None
    instructions: InstructionSettings | None = None
    masking: MaskingSettings | None = None

    @property
    def is_regression(self) -> bool:
        """Whether the labels are numbers to predict rather than classes."""
        return self.problem_type == "regression"

    @property
    def is_classification(self) -> bool:
        """Whether each row has one of several classes."""
        return self.problem_type == "single_label_classification"

    @property
    def document_start(self) -> str | None:
        """What rows match that begin a document; None where each row is one."""
        return KNOWN[self.task_name].document_start if self.task_name in KNOWN else None

    @property
    def parts(self) -> tuple[str, ...]:
        """The data sets that the task is tested on, if there are several."""
        return KNOWN[self.task_name].parts if self.task_name in KNOWN else ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row must have: those of its texts and, if there is one, of its label."""
        return (*self.text_columns, self.label_column) if self.label_column else self.text_columns

    def reported(self, usual: tuple[str, ...]) -> tuple[str, ...]:
        """Return the metrics that are reported, the one that selects first; `usual` are those of the task's kind."""
        known = KNOWN.get(self.task_name)
        return tuple(dict.fromkeys((self.metric, *(known.metrics if known else usual))))
