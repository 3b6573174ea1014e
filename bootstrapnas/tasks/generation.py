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

    from bootstrapnas.reading import Reading

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
        Prompts of similar length: ``input_ids`` and ``attention_mask`` [batch, tokens], padded on the right, and
        ``index``, the row numbers.
    tokenizer
        Of the model; its special tokens are left out of the texts.
    settings
        How to write.
    progress
        Whether to show it.
    """
    import torch

    from bootstrapnas.reading import begin

    ends = sorted({tokenizer.eos_token_id, *_listed(model.generation_config.eos_token_id)} - {None})
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = tokenizer.eos_token_id or 0
    write = _likeliest_tokens if settings.num_beams == 1 else _likeliest_texts
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    found: dict[int, np.ndarray] = {}
    total = sum(len(batch[INDEX]) for batch in batches)
    ticker = Ticker("generating", total) if progress else None
    try:
        with torch.inference_mode():
            for batch in batches:
                ids, mask = batch["input_ids"].to(device), batch[MASK].to(device)
                said = write(begin(model, ids, mask, settings.max_new_tokens), settings, ends, pad)
                texts = tokenizer.batch_decode(said.cpu(), skip_special_tokens=True)
                for index, text in zip(batch[INDEX].tolist(), texts, strict=True):
                    found[index] = np.frombuffer(text.encode(), dtype=np.uint8)
                if ticker is not None:
                    ticker.update(len(found))
    finally:
        model.train(was_training)
    return {TEXT: [found[index] for index in sorted(found)]}


def _likeliest_tokens(reading: Reading, settings: Generation, ends: list[int], pad: int) -> Tensor:
    """Return the likeliest token each time, [batch, new tokens]; a row that has ended costs nothing more."""
    import torch

    said = torch.full((len(reading.ids), settings.max_new_tokens), pad, device=reading.ids.device)
    writing = torch.arange(len(said), device=said.device)
    for place in range(settings.max_new_tokens):
        tokens = reading.read(reading.ids.shape[1]).argmax(dim=-1)
        said[writing, place] = tokens
        reading.append(tokens)
        going = (~torch.isin(tokens, tokens.new_tensor(ends))).nonzero()[:, 0]
        if not len(going):
            break
        if len(going) < len(tokens):
            reading.keep(going)
            writing = writing[going]
    return said


def _likeliest_texts(reading: Reading, settings: Generation, ends: list[int], pad: int) -> Tensor:
    """Return what beam search finds, [batch, new tokens]; prompts are read once, not once a beam."""
    from transformers import GenerationConfig

    width = reading.ids.shape[1]
    if width - 1 > reading.cache.get_seq_length():
        reading.read(width - 1)
    reading.cache.batch_repeat_interleave(settings.num_beams)
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        do_sample=False,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        use_cache=True,
        pad_token_id=pad,
        eos_token_id=ends or None,
    )
    said: Tensor = reading.model.generate(
        input_ids=reading.ids, attention_mask=reading.mask, past_key_values=reading.cache, generation_config=config
    )
    return said[:, width:]


def text_of(array: np.ndarray) -> str:
    """Return a text from its bytes."""
    return array.tobytes().decode()


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)
