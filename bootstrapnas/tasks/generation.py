"""Texts that a language model writes, a batch of prompts at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bootstrapnas.outputs import INDEX, MASK, Outputs
from bootstrapnas.progress import Ticker

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

TEXT = "text"
"""The output that holds a text, as bytes of UTF-8."""


@dataclass(frozen=True, slots=True)
class Generation:
    """How texts are written: the likeliest token each time, or the likeliest of `num_beams` texts. Never at random."""

    max_new_tokens: int = 32
    num_beams: int = 1


def generate(
    model: Any,
    batches: Sequence[Mapping[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    settings: Generation,
    *,
    progress: bool = False,
) -> Outputs:
    """Return what a model writes after each prompt, in the order of the data set.

    Parameters
    ----------
    model
        A Hugging Face model of causal language, an active supernet too. Its device and dtype are used as they are.
    batches
        Prompts of similar length: ``input_ids`` and ``attention_mask`` [batch, tokens], padded on either side, and
        ``index``, the row numbers.
    tokenizer
        Of the model; its special tokens are left out of the texts.
    settings
        How to write.
    progress
        Whether to show it.
    """
    import torch
    from transformers import GenerationConfig

    ends = {tokenizer.eos_token_id, *_listed(model.generation_config.eos_token_id)} - {None}
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = tokenizer.eos_token_id or 0
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        do_sample=False,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        use_cache=True,
        pad_token_id=pad,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(ends) or None,
    )
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    found: dict[int, np.ndarray] = {}
    total = sum(len(batch[INDEX]) for batch in batches)
    ticker = Ticker("generating", total) if progress else None
    try:
        with torch.inference_mode():
            for batch in batches:
                ids, mask = left_padded(batch["input_ids"], batch[MASK])
                said = model.generate(
                    input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
                )
                texts = tokenizer.batch_decode(said[:, ids.shape[1] :].cpu(), skip_special_tokens=True)
                for index, text in zip(batch[INDEX].tolist(), texts, strict=True):
                    found[index] = np.frombuffer(text.encode(), dtype=np.uint8)
                if ticker is not None:
                    ticker.update(len(found))
    finally:
        model.train(was_training)
    return {TEXT: [found[index] for index in sorted(found)]}


def text_of(array: np.ndarray) -> str:
    """Return a text from its bytes."""
    return array.tobytes().decode()


def left_padded(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of ``[batch, tokens]`` to the left, and cut off what all rows are padded with."""
    import torch

    order = torch.argsort(mask, dim=1, stable=True)
    width = int(mask.sum(dim=1).max())
    return ids.gather(1, order)[:, -width:], mask.gather(1, order)[:, -width:]


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)
