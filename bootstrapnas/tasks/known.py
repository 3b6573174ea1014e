"""Public data sets as data.

GLUE: Wang et al. 2019, https://arxiv.org/abs/1804.07461. SQuAD: Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250,
and 2018, https://arxiv.org/abs/1806.03822. IMDB: Maas et al. 2011, https://aclanthology.org/P11-1015. WikiText: Merity
et al. 2016, https://arxiv.org/abs/1609.07843. CoNLL-2003: Tjong Kim Sang & De Meulder 2003,
https://aclanthology.org/W03-0419. Common sense and mathematics: Hu et al. 2023 (LLM-Adapters),
https://arxiv.org/abs/2304.01933.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bootstrapnas.tasks.settings import LOSS, AnswerSettings, InstructionSettings, MaskingSettings, ProblemType

_GLUE, _WIKITEXT = "nyu-mll/glue", "Salesforce/wikitext"
_ARTICLE = r" = [^=]"  # the title of an article; its sections have more signs
_QUESTIONS, _INSTRUCTIONS = ("question", "context"), ("instruction", "output")
_FORETOLD = ("perplexity", "loss", "token_accuracy")


@dataclass(frozen=True)
class KnownTask:
    """What tells one task from another.

    Attributes
    ----------
    hub
        Hub id of the data set, and the name of its configuration if it has several; empty where the rows are made here
        or are the user's.
    text_columns
        The one or two columns of text.
    label_names
        The classes in the order of their indices; empty where there are none.
    metrics
        What is reported; the first one selects.
    problem_type
        As in `TaskSpec`.
    label_column
        The column that holds the label; empty if there is none.
    max_seq_length
        Tokens to which a row is cut unless a flag says otherwise.
    held_out
        Share of the training rows that validate where the data set has no validation split of its own.
    answers, instructions, masking
        As in `TaskSpec`.
    document_start
        What the rows match that begin a document; None where each row is one.
    own_files
        Whether the rows may be the user's: ``--train_file`` and so on.
    parts
        Data sets that the task is tested on, whose rows may lie in directories of their names.
    """

    hub: tuple[str, ...]
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    problem_type: ProblemType = "single_label_classification"
    label_column: str = "label"
    max_seq_length: int = 128
    held_out: float = 0.0
    answers: AnswerSettings | None = None
    instructions: InstructionSettings | None = None
    masking: MaskingSettings | None = None
    document_start: str | None = None
    own_files: bool = False
    parts: tuple[str, ...] = ()


def _instructions(
    parts: tuple[str, ...],
    settings: InstructionSettings = InstructionSettings(),  # noqa: B008
    *,
    label_column: str = "answer",
    max_seq_length: int = 256,
    own_files: bool = True,
) -> KnownTask:
    return KnownTask(
        (), _INSTRUCTIONS, (), problem_type="instructions", label_column=label_column, held_out=0.1 * own_files,
        max_seq_length=max_seq_length, instructions=settings, own_files=own_files, parts=parts,
    )  # fmt: skip


_TEXTS = {
    "wikitext2": KnownTask(
        (_WIKITEXT, "wikitext-2-raw-v1"), ("text",), (), _FORETOLD, "language_modelling", "", 512,
        document_start=_ARTICLE,
    ),
    "wikitext103": KnownTask(
        (_WIKITEXT, "wikitext-103-raw-v1"), ("text",), (), _FORETOLD, "language_modelling", "", 512,
        document_start=_ARTICLE,
    ),
    "builtin-lm": KnownTask((), ("text",), (), _FORETOLD, "language_modelling", "", 128),
    "text": KnownTask((), ("text",), (), _FORETOLD, "language_modelling", "", 512, held_out=0.1, own_files=True),
}  # fmt: skip

KNOWN: dict[str, KnownTask] = {
    "cola": KnownTask(
        (_GLUE, "cola"), ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation", "accuracy")
    ),
    "mnli": KnownTask((_GLUE, "mnli"), ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "mrpc": KnownTask(
        (_GLUE, "mrpc"), ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("f1", "accuracy")
    ),
    "qnli": KnownTask((_GLUE, "qnli"), ("question", "sentence"), ("entailment", "not_entailment")),
    "qqp": KnownTask((_GLUE, "qqp"), ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "rte": KnownTask((_GLUE, "rte"), ("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "sst2": KnownTask((_GLUE, "sst2"), ("sentence",), ("negative", "positive")),
    "stsb": KnownTask((_GLUE, "stsb"), ("sentence1", "sentence2"), (), ("pearson", "spearmanr"), "regression"),
    "imdb": KnownTask(("stanfordnlp/imdb",), ("text",), ("neg", "pos"), max_seq_length=512, held_out=0.1),
    "conll2003": KnownTask(
        ("lhoestq/conll2003",), ("tokens",),
        ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"),
        ("f1", "precision", "recall", "accuracy"), "token_classification", "ner_tags",
    ),
    "squad": KnownTask(
        ("rajpurkar/squad",), _QUESTIONS, (), ("f1", "exact_match"), "question_answering", "answers", 384,
        answers=AnswerSettings(),
    ),
    "squad_v2": KnownTask(
        ("rajpurkar/squad_v2",), _QUESTIONS, (), ("f1", "exact_match"), "question_answering", "answers", 384,
        answers=AnswerSettings(version_2_with_negative=True),
    ),
    **_TEXTS,
    **{
        f"masked-{name}": replace(text, problem_type="masked_language_modelling", masking=MaskingSettings())
        for name, text in _TEXTS.items()
    },
    "commonsense": _instructions(
        ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")
    ),
    "math": _instructions(
        ("gsm8k", "AQuA", "mawps", "SVAMP", "AddSub", "MultiArith", "SingleEq"), InstructionSettings(max_new_tokens=256)
    ),
    "sft": _instructions((), InstructionSettings(evaluate_by=LOSS), label_column=""),
    "builtin-arithmetic": _instructions(
        (), InstructionSettings(prompt_style="short", train_on_inputs=False), max_seq_length=128, own_files=False
    ),
}  # fmt: skip

ALIASES = {
    "squadv1": "squad",
    "squad_v1": "squad",
    "squadv2": "squad_v2",
    "sts-b": "stsb",
    "sst-2": "sst2",
    "wikitext-2": "wikitext2",
}
"""Other names that recipes give these tasks."""
