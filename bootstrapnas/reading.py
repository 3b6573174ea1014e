"""Causal language models reading prompts: what all rows of a batch begin with is read once.

The preamble of an instruction and the words around a data set's questions are a third of its prompts. Their keys and
values depend on no token that follows, so those of one row serve all.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bootstrapnas.outputs import MASK

if TYPE_CHECKING:
    from transformers import Cache

WORTHWHILE = 8
"""So many tokens that all rows begin with are cheaper read in a pass of their own than in every row."""


@dataclass(slots=True)
class Reading:
    """A batch of texts, and the keys and values of what is read of it.

    Attributes
    ----------
    model
        A causal language model; its active subnet stays the same.
    ids, mask
        [batch, tokens].
    cache
        Of the first of these tokens.
    """

    model: Any
    ids: Tensor
    mask: Tensor
    cache: Cache

    def read(self, until: int) -> Tensor:
        """Read on up to the token `until` (not included); return what is foretold of it, [batch, vocabulary]."""
        begun, mask = self.cache.get_seq_length(), self.mask[:, :until]
        logits: Tensor = self.model(
            input_ids=self.ids[:, begun:until],
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **_positions(self.model, mask, until - begun),
        ).logits
        return logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows only, by their numbers [kept]."""
        self.ids, self.mask = self.ids[rows], self.mask[rows]
        self.cache.batch_select_indices(rows)

    def append(self, tokens: Tensor) -> None:
        """Add a token to each row, [batch]."""
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)


def begin(model: Any, ids: Tensor, mask: Tensor, room: int) -> Reading:
    """Return prompts that end at the same place, with what all of them begin with read if that is worthwhile.

    Where it is, padding lies between that and the rest. Attention that sees so many last places only would see less of
    a text for it, so the beginning is not parted from the rest where such a window might not hold everything.

    Parameters
    ----------
    model
        A causal language model.
    ids, mask
        [batch, tokens], padded on the right.
    room
        How many tokens may follow.
    """
    window = model.config.get_text_config().to_dict().get("sliding_window")
    shared = 0
    if window is None or ids.shape[1] + room <= window:
        shared = shared_beginning(ids, mask, int(mask.sum(dim=1).min()) - 1)
    cache = _read_once(model, ids[:, :shared])
    if cache is None:
        shared, cache = 0, _empty(model)
    rest, rest_mask = left_padded(ids[:, shared:], mask[:, shared:])
    whole = torch.cat([ids[:, :shared], rest], dim=1), torch.cat([mask[:, :shared], rest_mask], dim=1)
    return Reading(model, *whole, cache)


def outputs_from(model: Any, inputs: dict[str, Tensor], first: int) -> Any:
    """Return a causal model's outputs of the tokens from `first` on: logits [batch, tokens - first, vocabulary].

    Parameters
    ----------
    model
        A causal language model.
    inputs
        ``input_ids``, ``attention_mask`` and what else it takes, [batch, tokens], padded on the right.
    first
        Outputs of the tokens before are not computed.
    """
    ids, mask = inputs["input_ids"], inputs[MASK]
    shared = shared_beginning(ids, mask, first)
    cache = _read_once(model, ids[:, :shared]) if shared else None
    if cache is None:
        shared = 0
    rest = {name: tensor[:, shared:] for name, tensor in inputs.items() if name != MASK}
    kept = ids.shape[1] - first
    return model(**rest, attention_mask=mask, past_key_values=cache, use_cache=cache is not None, logits_to_keep=kept)


def shared_beginning(ids: Tensor, mask: Tensor, limit: int) -> int:
    """Return how many tokens, at most `limit`, all rows begin with; 0 where it is not worthwhile to read them once.

    `ids` and `mask` are [batch, tokens], padded on the right.
    """
    if len(ids) < 2:
        return 0
    same = (ids == ids[:1]).all(dim=0) & (mask != 0).all(dim=0)
    shared = min(int(same.cumprod(dim=0).sum()), limit)
    return shared if shared >= WORTHWHILE else 0


def left_padded(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of [batch, tokens] to the left, and cut off what all rows are padded with."""
    order = torch.argsort(mask, dim=1, stable=True)
    width = int(mask.sum(dim=1).max())
    return ids.gather(1, order)[:, -width:], mask.gather(1, order)[:, -width:]


def _read_once(model: Any, ids: Tensor) -> Cache | None:
    """Return the keys and values of equal rows [batch, shared], computed of one of them.

    None if a cache would not tell its length, as the active subnet skips the attention that does.
    """
    cache = _empty(model)
    if ids.shape[1]:
        model(input_ids=ids[:1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        if cache.get_seq_length() != ids.shape[1]:
            return None
        cache.batch_repeat_interleave(len(ids))
    return cache


def _empty(model: Any) -> Cache:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _positions(model: Any, mask: Tensor, tokens: int) -> dict[str, Tensor]:
    """Return where the last `tokens` of a text are, padding not counted; nothing if a model counts itself (BLOOM)."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens:]}
