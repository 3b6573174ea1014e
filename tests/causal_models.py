"""Tiny causal language models with random weights and peaked logits, and a tokenizer for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conftest import FILLERS, SIGNALS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TEXTS = [
    "the red lamp turns.",
    "some quiet old dog stays near the green bridge again.",
    "a cat is late",
    "Two small birds, one street: the yellow house is under the old tree behind the river today.",
    "the woman looks far over the garden and the man is slow",
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a byte-level BPE tokenizer with a chat template, trained on the words of the tiny task."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join([*FILLERS, *SIGNALS])] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def build_causal(model_type: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """Build a tiny causal language model in evaluation mode; its likeliest token is far ahead of the next."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **{**SIZES, "vocab_size": len(build_tokenizer()), **changes})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
        model.get_output_embeddings().weight.normal_(std=2.0)
    return model
