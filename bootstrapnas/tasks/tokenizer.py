"""A small tokenizer made of a task's own texts, for models that are trained from scratch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from bootstrapnas.tasks.spec import TaskSpec

MOST_TOKENS = 1024
_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
_MASK = {"mask_token": "<mask>"}


def train_tokenizer(spec: TaskSpec, rows: Dataset, most_tokens: int = MOST_TOKENS) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer of the texts of a task's `rows`; every digit is a token of its own.

    It begins a text with ``<s>`` and leaves its end, ``</s>``, to the task; of masked language modelling it has a token
    for masks too. The same rows give the same tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = _SPECIAL | ({} if spec.masking is None else _MASK)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=most_tokens,
        special_tokens=[AddedToken(token, special=True) for token in special.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(spec, rows), trainer)
    begin = _SPECIAL["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **special
    )


def _texts(spec: TaskSpec, rows: Dataset) -> Iterator[str]:
    if spec.kind.corpus is not None:
        yield from spec.kind.corpus(spec, rows)
        return
    for name, feature in rows.features.items():
        if getattr(feature, "dtype", None) == "string":
            yield from rows[name]
