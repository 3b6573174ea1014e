"""Which kind a task is of, and what only tasks of some kinds have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ProblemType = Literal[
    "single_label_classification",
    "regression",
    "token_classification",
    "question_answering",
    "language_modelling",
    "masked_language_modelling",
    "instructions",
]
"""The names of the kinds, as `KINDS` has them."""
GENERATE, SCORE, LOSS = "generate", "score", "loss"
WAYS = (GENERATE, SCORE, LOSS)
"""Of measuring how instructions are followed."""


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are looked for.

    Parameters
    ----------
    doc_stride
        Tokens that two windows of a text share; None is a third of ``max_seq_length`` (128 of 384).
    version_2_with_negative
        Whether a question may have no answer in its text.
    n_best_size
        How many of the best starts and of the best ends are tried in a window.
    max_answer_length
        The longest answer, in tokens.
    null_score_diff_threshold
        There is no answer where its score exceeds the best answer's by more than this.
    """

    doc_stride: int | None = None
    version_2_with_negative: bool = False
    n_best_size: int = 20
    max_answer_length: int = 30
    null_score_diff_threshold: float = 0.0

    def stride(self, max_seq_length: int) -> int:
        """Return the tokens that two windows of `max_seq_length` tokens share."""
        return max_seq_length // 3 if self.doc_stride is None else self.doc_stride


@dataclass(frozen=True)
class InstructionSettings:
    """How instructions are put, learnt and measured.

    Parameters
    ----------
    prompt_style
        One of `PROMPTS`.
    train_on_inputs
        Whether the prompt is learnt too, not the response alone.
    evaluate_by
        ``"generate"``, ``"score"`` or ``"loss"``.
    max_new_tokens, num_beams
        Of `Generation`.
    """

    prompt_style: str = "default"
    train_on_inputs: bool = True
    evaluate_by: str = GENERATE
    max_new_tokens: int = 32
    num_beams: int = 1


@dataclass(frozen=True)
class MaskingSettings:
    """Which tokens of a text are hidden.

    Parameters
    ----------
    mlm_probability
        The share of a block's tokens that are to be told.
    mask_draws
        How many times each block of the training texts is learnt in an epoch, other tokens hidden each time.
    """

    mlm_probability: float = 0.15
    mask_draws: int = 1
