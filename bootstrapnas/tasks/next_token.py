"""What language models say: how likely each token is to stand at a place; of causal ones, at the one that is next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bootstrapnas.outputs import IGNORED, TOKENS, VOCABULARY, Output, Outputs, Reduction
from bootstrapnas.tasks.kind import Head

if TYPE_CHECKING:
    from torch import Tensor

LOSS, HIT = "loss", "hit"
HEAD = Head("AutoModelForCausalLM", ("ForCausalLM", "LMHeadModel"))
METRICS = ("perplexity", "loss", "token_accuracy")
LESS_IS_BETTER = ("perplexity", "loss")
_LARGEST_LOSS = 700.0  # exp of more is no float


def _reduce(logits: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return foretell(logits, batch["input_ids"], [1] * len(logits))


def foretell(logits: Tensor, tokens: Tensor, starts: Sequence[int]) -> dict[str, Tensor]:
    """Return of each token how badly those before it foretell it: [batch, tokens], 0 before a row's start (1 or more).

    ``loss`` is the negative log-likelihood in nats, ``hit`` 1 where the token was the likeliest. A row at a time: the
    float32 copies of a whole batch may not fit.
    """
    import torch

    tokens = tokens.to(logits.device)
    found = {name: torch.zeros(tokens.shape, device=logits.device) for name in (LOSS, HIT)}
    for row, start in enumerate(starts):
        said, targets = logits[row, start - 1 : -1], tokens[row, start:]
        found[LOSS][row, start:], found[HIT][row, start:] = held_against(said, targets)
    return found


def held_against(said: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return of logits [tokens, vocabulary] and the tokens they speak of, [tokens], loss and hit, as `foretell`."""
    from torch.nn import functional as F

    return F.cross_entropy(said.float(), targets, reduction="none"), (said.argmax(dim=-1) == targets).float()


KEPT = (Output(LOSS, TOKENS), Output(HIT, TOKENS))
LOGITS = Output("logits", f"{TOKENS} {VOCABULARY}", Reduction(_reduce, KEPT), ahead=1)


@dataclass(frozen=True, slots=True)
class Foretold:
    """How well the tokens of a feature were foretold: sums over the `tokens` that count."""

    loss: float
    hits: float
    tokens: int


def foretold(
    outputs: Outputs, labels: Iterable[Any], ahead: int = 1, places: Iterable[int] | None = None
) -> list[Foretold]:
    """Return how well the tokens of each feature that have a label were foretold; its first `ahead` never count.

    `places` are where in the result the features stand, if some were left out: there, no token counts.
    """
    found = []
    for loss, hit, targets in zip(outputs[LOSS], outputs[HIT], labels, strict=True):
        counts = np.asarray(targets) != IGNORED
        counts[:ahead] = False
        found.append(Foretold(float(loss[counts].sum()), float(hit[counts].sum()), int(counts.sum())))
    if places is None:
        return found
    at = dict(zip(places, found, strict=True))
    return [at.get(place, Foretold(0.0, 0.0, 0)) for place in range(max(at) + 1)]


def measure_foretold(found: Iterable[Foretold]) -> dict[str, float]:
    """Return the metrics over all tokens: their mean loss in nats, its exponential, and the share of hits.

    Raises
    ------
    ValueError
        If there are no tokens.
    """
    found = list(found)
    tokens = sum(each.tokens for each in found)
    if not tokens:
        raise ValueError("there are no tokens to foretell")
    loss = sum(each.loss for each in found) / tokens
    return {
        "perplexity": float(np.exp(min(loss, _LARGEST_LOSS))),
        "loss": loss,
        "token_accuracy": sum(each.hits for each in found) / tokens,
    }


def show_foretold(found: Iterable[Foretold], names: Iterable[Any]) -> list[dict[str, Any]]:
    """Return of each that has tokens its name, their number and their perplexity."""
    return [
        {"index": name, "tokens": each.tokens, "prediction": measure_foretold([each])["perplexity"]}
        for name, each in zip(names, found, strict=False)
        if each.tokens
    ]
