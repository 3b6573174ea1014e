"""What a kind of task asks of a model: the Hugging Face class that has its head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Head:
    """The head that a kind of task needs.

    Attributes
    ----------
    auto_class
        Name of the Hugging Face auto class that loads models with it.
    suffix
        What class names of such models end in.
    """

    auto_class: str
    suffix: str

    def load_class(self) -> Any:
        """Return the auto class itself."""
        import transformers

        return getattr(transformers, self.auto_class)

    def is_in(self, architectures: list[str] | None) -> bool:
        """Return whether a config's ``architectures`` name a model that has this head."""
        return any(name.endswith(self.suffix) for name in architectures or ())


SEQUENCE = Head("AutoModelForSequenceClassification", "ForSequenceClassification")

HEADS = {"single_label_classification": SEQUENCE, "regression": SEQUENCE}
"""Problem type of a task -> the head that it needs."""
