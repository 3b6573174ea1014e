"""A small tokenizer made of a task's own texts, for models that are trained from scratch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

MOST_TOKENS = 1024
_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def train_tokenizer(rows: Dataset, most_tokens: int = MOST_TOKENS) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer of the texts of `rows`; every digit is a token of its own.

    It begins a text with ``<s>`` and leaves its end, ``</s>``, to the task. The same rows give the same tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=most_tokens,
        special_tokens=[AddedToken(token, special=True) for token in _SPECIAL.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(rows), trainer)
    begin = _SPECIAL["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **_SPECIAL
    )


def _texts(rows: Dataset) -> Iterator[str]:
    columns = [name for name, feature in rows.features.items() if getattr(feature, "dtype", None) == "string"]
    for part in rows.select_columns(columns).iter(batch_size=1000):
        for name in columns:
            yield from part[name]
