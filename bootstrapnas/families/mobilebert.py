"""MobileBERT: thin post-norm layers between bottlenecks, with stacked FFNs, each a dimension and a block of its own.

Labelled as published: trigram embeddings, a bottleneck that queries and keys share and values do not pass, four FFNs a
layer, no norm but scale and shift. A model of another shape is refused by its first parameter that does not fit.
"""

from dataclasses import replace
from typing import Any

from bootstrapnas.dims import Dim, Labels, embedding, linear, norm
from bootstrapnas.families.base import Block
from bootstrapnas.families.bert import BERT, DIMS, MULTIPLE_CHOICE, QUESTION_ANSWERING, TOKEN_CLASSIFIER, WORDS

STACKED = ("ffn.0", "ffn.1", "ffn.2")
"""The FFNs of a layer before its last one."""


def intermediate_size(config: Any) -> int:
    """Return the width of the stacked FFNs, which the config gives for all FFNs together."""
    return int(config.intermediate_size)


def stacked(path: str) -> str:
    """Return the dimension of a stacked FFN."""
    return path.replace(".", "_")


def ffn(path: str) -> dict[str, Any]:
    """Label a stacked FFN."""
    return {
        **linear(f"{path}.intermediate.dense", stacked(path), "bottleneck"),
        **linear(f"{path}.output.dense", "bottleneck", stacked(path)),
        **norm(f"{path}.output.LayerNorm", "bottleneck"),
    }


LAYER = {
    **linear("attention.self.query", "head hd", "bottleneck"),
    **linear("attention.self.key", "head hd", "bottleneck"),
    **linear("attention.self.value", "head hd", "hidden"),
    **linear("attention.output.dense", "bottleneck", "head hd"),
    **norm("attention.output.LayerNorm", "bottleneck"),
    **linear("intermediate.dense", "ffn", "bottleneck"),
    **linear("output.dense", "bottleneck", "ffn"),
    **norm("output.LayerNorm", "bottleneck"),
    **linear("output.bottleneck.dense", "hidden", "bottleneck"),
    **norm("output.bottleneck.LayerNorm", "hidden"),
    **linear("bottleneck.input.dense", "bottleneck", "hidden"),
    **norm("bottleneck.input.LayerNorm", "bottleneck"),
    **linear("bottleneck.attention.dense", "bottleneck", "hidden"),
    **norm("bottleneck.attention.LayerNorm", "bottleneck"),
    **{name: labels for path in STACKED for name, labels in ffn(path).items()},
}
POOLER = linear(
    "pooler.dense", "hidden", "hidden", bias=lambda config: config.classifier_activation, applied="sequence"
)
POOLER["pooler.dense.weight"] = replace(
    POOLER["pooler.dense.weight"], present=lambda config: config.classifier_activation
)
# Skipping attention returns its residual, without the norm, as in BERT, and drops the bottleneck of queries and keys.
# A stacked FFN that is skipped returns its input; of the last one, norm and bottleneck are left.
OUT, ATTENTION_OUT = "output.bottleneck.LayerNorm/__add___0", "attention.output.LayerNorm/__add___0"
STARTS = (ATTENTION_OUT, *(f"{path}.output.LayerNorm/__add___0" for path in STACKED))
BLOCKS = (
    Block(
        "mha_block",
        {
            "bottleneck.attention": "zero",
            "attention.self": "zero, none",
            "attention.output.dense": "zero",
            "attention.output.LayerNorm": "input",
        },
        nncf_start=f"<{OUT}",
        nncf_end=ATTENTION_OUT,
        nncf_first="embeddings.dropout/dropout_0",
    ),
    *(
        Block(f"{stacked(path)}_block", {path: "input"}, nncf_start=start, nncf_end=end)
        for path, start, end in zip(STACKED, STARTS, STARTS[1:], strict=False)
    ),
    Block(
        "ffn_block",
        {"intermediate": "input", "output.dense": "zero"},
        nncf_start=STARTS[-1],
        nncf_end="output/__add___0",
    ),
    Block(
        "layer_block",
        {"": "input"},
        nncf_start=f"<{OUT}",
        nncf_end=OUT,
        nncf_first="embeddings.dropout/dropout_0",
    ),
)

MOBILEBERT = replace(
    BERT,
    model_type="mobilebert",
    base="mobilebert",
    bare="MobileBertModel",
    dims=(
        *(dim for dim in DIMS if dim.name != "hd"),
        Dim("hd", lambda config: config.intra_bottleneck_size // config.num_attention_heads, elastic=False),
        Dim("bottleneck", "intra_bottleneck_size", per_layer=False, elastic=False),
        Dim("embedding", "embedding_size", per_layer=False, elastic=False),
        Dim("rest", lambda config: config.hidden_size - config.embedding_size, per_layer=False, elastic=False),
        *(Dim(stacked(path), intermediate_size) for path in STACKED),
    ),
    embeddings={
        **embedding("embeddings.word_embeddings", "vocab", "embedding"),
        **embedding("embeddings.position_embeddings", "position", "hidden"),
        **embedding("embeddings.token_type_embeddings", "type", "hidden"),
        **linear("embeddings.embedding_transformation", "hidden", "embedding + embedding + embedding"),
        **norm("embeddings.LayerNorm", "hidden"),
    },
    layer=LAYER,
    architectures={
        "MobileBertModel": POOLER,
        "MobileBertForSequenceClassification": {
            **POOLER,
            **linear("classifier", "label", "hidden", applied="sequence"),
        },
        "MobileBertForQuestionAnswering": QUESTION_ANSWERING,
        "MobileBertForTokenClassification": TOKEN_CLASSIFIER,
        "MobileBertForMultipleChoice": {**POOLER, **MULTIPLE_CHOICE},
        "MobileBertForMaskedLM": {
            **linear("cls.predictions.transform.dense", "embedding + rest", "hidden"),
            **norm("cls.predictions.transform.LayerNorm", "embedding + rest"),
            "cls.predictions.bias": Labels("vocab"),
            # The decoder in two parts: the embedding table, and what the hidden size has more than it.
            "cls.predictions.dense.weight": Labels("rest, vocab", "token"),
            **linear("cls.predictions.decoder", "vocab", "embedding", tied=WORDS, tied_bias="cls.predictions.bias"),
        },
    },
    blocks=BLOCKS,
)
