"""Texts that a language model writes, a batch of prompts at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bootstrapnas.artefacts import read_json
from bootstrapnas.outputs import INDEX, MASK, Outputs
from bootstrapnas.progress import Ticker

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from bootstrapnas.export import CausalIR
    from bootstrapnas.reading import Reading

TEXT = "text"
"""The output that holds a text, as bytes of UTF-8."""
_MOST_LOGITS = 1 << 28  # of prompts that an IR reads at once, which foretells after each token: 1 GiB at float32


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

    ends = _ends(tokenizer, model.generation_config.eos_token_id)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = tokenizer.eos_token_id or 0
    write = _likeliest_tokens if settings.num_beams == 1 else _likeliest_texts
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device

    def said(ids: Tensor, mask: Tensor) -> Tensor:
        reading = begin(model, ids.to(device), mask.to(device), settings.max_new_tokens)
        return write(reading, settings, ends, pad).cpu()

    try:
        with torch.inference_mode():
            return _texts(said, batches, tokenizer, progress)
    finally:
        model.train(was_training)


def generate_by_ir(
    ir: CausalIR,
    batches: Sequence[Mapping[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    settings: Generation,
    *,
    progress: bool = False,
) -> Outputs:
    """Return what an IR writes after each prompt, greedily, whatever `settings` say of beams; else as `generate`."""
    from bootstrapnas.reading import left_padded

    config = ir.directory / "generation_config.json"
    ends = _ends(tokenizer, read_json(config).get("eos_token_id") if config.is_file() else None)

    def said(ids: Tensor, mask: Tensor) -> list[list[int]]:
        ids, mask = left_padded(ids, mask)
        rows = max(1, _MOST_LOGITS // (len(tokenizer) * ids.shape[1]))
        found = []
        for some, of_some in zip(ids.split(rows), mask.split(rows), strict=True):
            found += ir.generate_greedy(
                some.numpy(), of_some.numpy(), max_new_tokens=settings.max_new_tokens, stop=ends
            )
        return found

    return _texts(said, batches, tokenizer, progress)


def _texts(
    said: Callable[[Tensor, Tensor], Any],
    batches: Sequence[Mapping[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    progress: bool,
) -> Outputs:
    """Return the texts of what `said` makes of ids and mask of prompts: a row of tokens each."""
    found: dict[int, np.ndarray] = {}
    ticker = Ticker("generating", sum(len(batch[INDEX]) for batch in batches)) if progress else None
    for batch in batches:
        texts = tokenizer.batch_decode(said(batch["input_ids"], batch[MASK]), skip_special_tokens=True)
        for index, text in zip(batch[INDEX].tolist(), texts, strict=True):
            found[index] = np.frombuffer(text.encode(), dtype=np.uint8)
        if ticker is not None:
            ticker.update(len(found))
    return {TEXT: [found[index] for index in sorted(found)]}


def _ends(tokenizer: PreTrainedTokenizerBase, of_model: Any) -> list[int]:
    """Return the tokens that end a text: the tokenizer's, and one or several of the model's."""
    listed = of_model if isinstance(of_model, list | tuple) else (of_model,)
    return sorted({tokenizer.eos_token_id, *listed} - {None})


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
