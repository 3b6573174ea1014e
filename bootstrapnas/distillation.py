"""Knowledge distillation from a fine-tuned teacher's outputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


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


def same_labels(teacher: dict[int, str], student: dict[int, str]) -> bool:
    """Return whether two ``id2label`` mappings mean the same classes in the same order.

    Hugging Face's placeholder names (``LABEL_0`` …) say nothing, so only the number of classes counts then.
    """
    if len(teacher) != len(student):
        return False

    def placeholder(names: dict[int, str]) -> bool:
        return all(name == f"LABEL_{index}" for index, name in names.items())

    return placeholder(teacher) or placeholder(student) or teacher == student
