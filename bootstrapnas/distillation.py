"""Knowledge distillation from a fine-tuned teacher: of its outputs and of what it computes inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.intermediate import TERMS, Term, compared, recording
from bootstrapnas.outputs import IGNORED, LABELS, LOGITS, TOKENS, VALUE, VOCABULARY, Output, Outputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KD_MODES: Mapping[str, tuple[str, ...]] = {
    "original": (),
    "hidden_states": ("hidden_states",),
    "attention_relations": ("attention_relations",),
    "self_attention_distillation": ("hidden_states", "attention_relations"),
}
"""Name of a way of distilling -> the terms that it adds to the loss on the outputs."""

Said: TypeAlias = Mapping[str, Any]
"""What a model says of a batch: by name of an output its tensor, and by name of a term what was recorded inside."""


@dataclass(frozen=True, slots=True)
class Distillation:
    """The loss of a student that has a teacher.

    ``task_weight * task loss + teacher_weight * T**2 * KL(teacher || student)``, plus weighted terms on what the two
    compute inside. Hinton et al. 2015; the weights 0.1 and 0.9 and T = 2 are EFTNAS's. With several outputs (start and
    end of an answer) the second term is the mean of theirs; of an output that is a value, the mean squared error. The
    KL divergence is summed over classes (or tokens, for a position) and averaged over the rows, or over the tokens of
    the batch where each has classes of its own. Padding takes no part in it, neither in the softmax nor in the mean,
    nor do the logits of a language model that speak of no token to predict.

    Attributes
    ----------
    squared
        Whether all outputs are compared by their mean squared error.
    terms
        Term -> its weight. Without any, the teacher's outputs alone are needed.
    """

    temperature: float = 2.0
    task_weight: float = 0.1
    teacher_weight: float = 0.9
    outputs: tuple[Output, ...] = (LOGITS,)
    squared: bool = False
    terms: Mapping[Term, float] = field(default_factory=dict)

    def __call__(
        self,
        task_loss: Tensor,
        student: Said,
        teacher: Said,
        mask: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Return the combined loss, scalar.

        Parameters
        ----------
        task_loss
            Scalar.
        student, teacher
            By name of each of `outputs`, tensors of shape [batch, axes of the output]; by name of each term, what was
            recorded.
        mask
            [batch, tokens], 0 where rows are padded; needed for terms and for outputs with an axis of tokens.
        targets
            [batch, tokens], the token at each place, -100 where it is not to be predicted; for outputs of a vocabulary.
        """
        differences = [
            self._difference(output, student[output.name], teacher[output.name], mask, targets)
            for output in self.outputs
        ]
        loss = self.task_weight * task_loss + self.teacher_weight * torch.stack(differences).mean()
        for term, weight in self.terms.items():
            assert mask is not None, f"{term.name} needs a mask"
            loss = loss + weight * compared(term, student[term.name], teacher[term.name], mask)
        return loss

    def _difference(
        self, output: Output, student: Tensor, teacher: Tensor, mask: Tensor | None, targets: Tensor | None
    ) -> Tensor:
        squared = self.squared or output.last == VALUE
        if output.per_token:
            assert mask is not None, f"{output.name} has an axis of tokens and needs a mask"
            kept = mask.bool()
            if output.last == VOCABULARY and targets is not None:
                kept = F.pad(targets[:, output.ahead :] != IGNORED, (0, output.ahead)) & kept
            if output.last == TOKENS and not squared:
                student, teacher = student.float(), teacher.float()
                # Not -inf, whose differences are NaN, nor what a temperature below 1 makes of the lowest number.
                least = torch.finfo(student.dtype).min * min(1.0, self.temperature) / 2
                student, teacher = student.masked_fill(~kept, least), teacher.masked_fill(~kept, least)
            else:
                student, teacher = student[kept], teacher[kept]
        student, teacher = student.float(), teacher.float()
        if squared:
            return F.mse_loss(student, teacher)
        log_student = F.log_softmax(student / self.temperature, dim=-1)
        log_teacher = F.log_softmax(teacher / self.temperature, dim=-1)
        divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
        return divergence * self.temperature**2


def divergence(outputs: Sequence[Output], teacher: Outputs, student: Outputs) -> float:
    """Return how far outputs on the same rows are from a teacher's: the loss of `Distillation` at temperature 1.

    The mean over rows of KL(teacher || student), in nats; of an output that is a value, the mean squared error; the
    mean over `outputs` where there are several.
    """
    compare = Distillation(temperature=1.0, task_weight=0.0, teacher_weight=1.0, outputs=tuple(outputs))
    count = len(next(iter(student.values())))
    alike = not any(output.per_token for output in outputs)  # else each row has a length of its own
    total = 0.0
    for rows in [slice(0, count)] if alike else [slice(row, row + 1) for row in range(count)]:
        said, taught = (
            {name: torch.from_numpy(np.stack(of[name][rows])) for name in student} for of in (student, teacher)
        )
        first = said[outputs[0].name]
        mask = None if alike else torch.ones(first.shape[:2])
        total += float(compare(torch.zeros(()), said, taught, mask)) * len(first)
    return total / count


def terms_of(mode: str) -> tuple[Term, ...]:
    """Return the terms of a way of distilling, by name; `UserError` if there is none of that name."""
    if mode not in KD_MODES:
        raise UserError(f"unknown --kd_mode {mode!r} (known: {listed(KD_MODES)}){near_miss(mode, KD_MODES)}")
    return tuple(TERMS[name] for name in KD_MODES[mode])


class Teacher:
    """A frozen model that says, once a batch, what a distillation compares.

    Parameters
    ----------
    model
        The teacher; put into evaluation mode.
    terms
        What to record inside.
    inputs
        Names of the batch's tensors that it takes.
    outputs
        The outputs that are compared.
    order
        Per class of the student, the index of the teacher's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        terms: Sequence[Term],
        inputs: Sequence[str],
        outputs: Sequence[Output],
        order: Sequence[int],
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.terms, self.inputs, self.outputs, self.order = tuple(terms), frozenset(inputs), tuple(outputs), list(order)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> Said:
        """Return what it says of a batch, without gradients."""
        with recording(self.model, self.terms) as inner:
            found = self.model(**{name: tensor for name, tensor in batch.items() if name in self.inputs})
        said = {output.name: found[output.name] for output in self.outputs}
        for output in self.outputs:
            if output.last == LABELS:
                said[output.name] = said[output.name][..., self.order]
        return {**said, **inner}


def label_order(teacher: Sequence[str], student: Sequence[str], whose: str = "the teacher") -> list[int]:
    """Return, for each class of the student, the index of the teacher's output for it.

    Names are compared without regard to case. The order is taken as it is when either side has only `placeholders`.
    `whose` names the teacher in messages.

    Raises
    ------
    UserError
        If the two do not have the same classes.
    """
    if len(teacher) != len(student):
        raise UserError(
            f"{whose} has {len(teacher)} labels ({_shown(teacher)}), the task {len(student)} ({_shown(student)})"
        )
    if placeholders(teacher) or placeholders(student):
        return list(range(len(student)))
    index = {name.lower(): position for position, name in enumerate(teacher)}
    if index.keys() != {name.lower() for name in student}:
        raise UserError(f"{whose} has other labels ({_shown(teacher)}) than the task ({_shown(student)})")
    return [index[name.lower()] for name in student]


def placeholders(names: Sequence[str]) -> bool:
    """Return whether names of classes say nothing but their indices: Hugging Face's ``LABEL_0`` …, or ``0`` …."""
    return all(name.upper().removeprefix("LABEL_") == str(index) for index, name in enumerate(names))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
