"""Knowledge distillation from a fine-tuned teacher's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bootstrapnas.errors import UserError
from bootstrapnas.outputs import LOGITS, TOKENS, VALUE, Output


@dataclass(frozen=True, slots=True)
class Distillation:
    """Distillation of outputs: ``task_weight * task loss + teacher_weight * T**2 * KL(teacher || student)``.

    Hinton et al. 2015; the weights 0.1 and 0.9 and T = 2 are EFTNAS's. With several outputs (start and end of an
    answer) the second term is the mean of theirs; of an output that is a value, the mean squared error. The KL
    divergence is summed over classes (or tokens, for a position) and averaged over the rows, or over the tokens of the
    batch where each has classes of its own. Padding takes no part in it, neither in the softmax nor in the mean.
    """

    temperature: float = 2.0
    task_weight: float = 0.1
    teacher_weight: float = 0.9
    outputs: tuple[Output, ...] = (LOGITS,)

    def __call__(
        self,
        task_loss: Tensor,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the combined loss, scalar.

        Parameters
        ----------
        task_loss
            Scalar.
        student, teacher
            By name of each of `outputs`, tensors of shape [batch, axes of the output].
        mask
            [batch, tokens], 0 where rows are padded; needed for outputs with an axis of tokens.
        """
        terms = [
            self._term(output, student[output.name].float(), teacher[output.name].float(), mask)
            for output in self.outputs
        ]
        return self.task_weight * task_loss + self.teacher_weight * torch.stack(terms).mean()

    def _term(self, output: Output, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        if output.last == VALUE:
            return F.mse_loss(student, teacher)
        if output.per_token:
            assert mask is not None, f"{output.name} has an axis of tokens and needs a mask"
            kept = mask.bool()
            if output.last == TOKENS:
                # Not -inf, whose differences are NaN.
                least = torch.finfo(student.dtype).min
                student, teacher = student.masked_fill(~kept, least), teacher.masked_fill(~kept, least)
            else:
                student, teacher = student[kept], teacher[kept]
        log_student = F.log_softmax(student / self.temperature, dim=-1)
        log_teacher = F.log_softmax(teacher / self.temperature, dim=-1)
        divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
        return divergence * self.temperature**2


def label_order(teacher: Sequence[str], student: Sequence[str], whose: str = "the teacher") -> list[int]:
    """Return, for each class of the student, the index of the teacher's output for it.

    Names are compared without regard to case. Hugging Face's placeholder names (``LABEL_0`` …) say nothing, so the
    order is taken as it is when either side has only those. `whose` names the teacher in messages.

    Raises
    ------
    UserError
        If the two do not have the same classes.
    """
    if len(teacher) != len(student):
        raise UserError(
            f"{whose} has {len(teacher)} labels ({_shown(teacher)}), the task {len(student)} ({_shown(student)})"
        )
    if _placeholders(teacher) or _placeholders(student):
        return list(range(len(student)))
    index = {name.lower(): position for position, name in enumerate(teacher)}
    if index.keys() != {name.lower() for name in student}:
        raise UserError(f"{whose} has other labels ({_shown(teacher)}) than the task ({_shown(student)})")
    return [index[name.lower()] for name in student]


def _placeholders(names: Sequence[str]) -> bool:
    return all(name.upper() == f"LABEL_{index}" for index, name in enumerate(names))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
