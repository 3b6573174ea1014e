"""Masked language modelling: texts in blocks of tokens, of which some are hidden and are to be told from the others.

Devlin et al. 2019 (BERT), https://arxiv.org/abs/1810.04805. Which ones is decided once for every block: what Liu et al.
2019 (RoBERTa), https://arxiv.org/abs/1907.11692, call static masking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bootstrapnas.errors import UserError
from bootstrapnas.outputs import IGNORED, TOKENS, VOCABULARY, Output, Outputs, Reduction
from bootstrapnas.tasks.kind import Head
from bootstrapnas.tasks.language_modelling import LANGUAGE_MODELLING, blocks_of
from bootstrapnas.tasks.next_token import HIT, KEPT, LOSS, Foretold, foretold, held_against

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from bootstrapnas.tasks.task import Task

HEAD = Head("AutoModelForMaskedLM", "ForMaskedLM")
TARGETS, BLOCK = "labels", "block"
_MASKED, _REPLACED = 0.8, 0.1
"""Shares of the tokens that are to be told which become the mask, and another token; the others stay."""


def _check(spec: Task) -> None:
    LANGUAGE_MODELLING.check(spec)
    settings = spec.masking
    if settings is None:
        raise UserError(f"task {spec.task_name}: masked language modelling needs the settings 'masking'")
    if not 0 < settings.mlm_probability < 1:
        raise UserError(f"mlm_probability must lie above 0 and below 1, not {settings.mlm_probability:g}")
    if settings.mask_draws < 1:
        raise UserError(f"mask_draws must be positive, not {settings.mask_draws}")


@dataclass(frozen=True, slots=True)
class Masking:
    """How tokens are hidden.

    Attributes
    ----------
    mask
        The token that hides others.
    special
        Tokens that are never hidden.
    words
        Those that may stand in for one.
    share
        How many of the tokens that are not special are to be told: at least one.
    """

    mask: int
    special: np.ndarray
    words: np.ndarray
    share: float

    @classmethod
    def of(cls, spec: Task, tokenizer: PreTrainedTokenizerBase) -> Masking:
        """Return how a task hides a tokenizer's tokens; `UserError` if there is none to hide them by."""
        assert spec.masking is not None
        if tokenizer.mask_token_id is None:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path} has no token for masks, which task {spec.task_name} hides "
                "words by: it is no masked language model's"
            )
        special = np.array(sorted(tokenizer.all_special_ids))
        words = np.setdiff1d(np.arange(len(tokenizer)), special)
        return cls(tokenizer.mask_token_id, special, words, spec.masking.mlm_probability)

    def hide(self, tokens: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a block [tokens] as the model sees it, and the labels, -100 where nothing is to be told.

        None if every token is special.
        """
        places = np.flatnonzero(~np.isin(tokens, self.special))
        if not len(places):
            return None
        chosen = random.choice(places, max(1, round(self.share * len(places))), replace=False)
        labels = np.full_like(tokens, IGNORED)
        labels[chosen] = tokens[chosen]
        draw = random.random(len(chosen))
        seen = tokens.copy()
        seen[chosen[draw < _MASKED]] = self.mask
        replaced = chosen[draw >= 1 - _REPLACED]
        seen[replaced] = random.choice(self.words, len(replaced))
        return seen, labels


def _features(spec: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, draws: int) -> Dataset:
    """Return the blocks, once for each of `draws`, without those that hold special tokens alone.

    What is hidden follows from the task's seed, the draw and the number of the block. ``labels`` are the tokens that
    are to be told, -100 at all other places; ``block`` is the number of the block.
    """
    from datasets import Dataset, Features, List, Value

    masking, blocks = Masking.of(spec, tokenizer), blocks_of(spec, rows, tokenizer)
    found = [
        (number, *hidden)
        for draw in range(draws)
        for number, block in enumerate(blocks)
        if (hidden := masking.hide(block, np.random.default_rng((spec.seed, draw, number)))) is not None
    ]
    if not found:
        raise UserError(f"task {spec.task_name}: the texts hold special tokens alone, and nothing to hide")
    columns: dict[str, list[Any]] = {"input_ids": [seen for _, seen, _ in found]}
    types = {"input_ids": List(Value("int32")), "attention_mask": List(Value("int8"))}
    columns["attention_mask"] = [np.ones(len(seen), np.int8) for _, seen, _ in found]
    if "token_type_ids" in tokenizer.model_input_names:
        types["token_type_ids"] = List(Value("int8"))
        columns["token_type_ids"] = [np.zeros(len(seen), np.int8) for _, seen, _ in found]
    columns |= {TARGETS: [labels for _, _, labels in found], "length": [len(seen) for _, seen, _ in found]}
    columns[BLOCK] = [number for number, _, _ in found]
    types |= {TARGETS: List(Value("int32")), "length": Value("int32"), BLOCK: Value("int32")}
    return Dataset.from_dict(columns, features=Features(types))


def _to_learn(spec: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    assert spec.masking is not None
    return _features(spec, rows, tokenizer, draws=spec.masking.mask_draws)


def _reduce(logits: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return how badly each token that is to be told was: [batch, tokens], 0 elsewhere. As `foretell`, row by row."""
    import torch

    labels = batch[TARGETS].to(logits.device)
    found = {name: torch.zeros(labels.shape, device=logits.device) for name in (LOSS, HIT)}
    for row, targets in enumerate(labels):
        told = targets != IGNORED
        found[LOSS][row, told], found[HIT][row, told] = held_against(logits[row, told], targets[told])
    return found


def _decode(spec: Task, outputs: Outputs, rows: Dataset, features: Dataset) -> list[Foretold]:
    return foretold(outputs, features[TARGETS], ahead=0, places=features[BLOCK])


LOGITS = Output("logits", f"{TOKENS} {VOCABULARY}", Reduction(_reduce, KEPT, (TARGETS,)))
MASKED_LANGUAGE_MODELLING = replace(
    LANGUAGE_MODELLING,
    head=HEAD,
    outputs=(LOGITS,),
    check=_check,
    features=_to_learn,
    probes=partial(_features, draws=1),
    decode=_decode,
    causal=False,
)
"""As `LANGUAGE_MODELLING`, but for what is to be told of a block."""
