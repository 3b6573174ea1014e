"""Knowledge distillation from a fine-tuned teacher's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from bootstrapnas.errors import UserError


@dataclass(frozen=True, slots=True)
class Distillation:
    """Logits distillation: ``task_weight * task loss + teacher_weight * T**2 * KL(teacher || student)``.

    Hinton et al. 2015; the weights 0.1 and 0.9 and T = 2 are EFTNAS's. For regression the second term is the mean
    squared error between the outputs. The KL divergence is summed over classes and averaged over the batch.
    """

    temperature: float = 2.0
    task_weight: float = 0.1
    teacher_weight: float = 0.9
    regression: bool = False

    def __call__(self, task_loss: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the combined loss (scalar) for `student` and `teacher` outputs of shape [batch, labels]."""
        student, teacher = student.float(), teacher.float()
        if self.regression:
            term = F.mse_loss(student, teacher)
        else:
            log_student = F.log_softmax(student / self.temperature, dim=-1)
            log_teacher = F.log_softmax(teacher / self.temperature, dim=-1)
            term = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * self.temperature**2
        return self.task_weight * task_loss + self.teacher_weight * term


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
