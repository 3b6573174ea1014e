"""ModernBERT: pre-norm encoder with rotary positions and fused projections (Wqkv; Wi, a GLU's input and its gate).

Local attention is counted as it is computed: in full, with a mask (only flash attention leaves out the rest).
"""

from operator import attrgetter

from bootstrapnas.dims import Dim, Labels, embedding, linear, norm
from bootstrapnas.families.base import Attention, Block, Family

NORM_BIAS = attrgetter("norm_bias")
LAYER = {
    **norm("attn_norm", "hidden", bias=NORM_BIAS, layers=lambda layer: layer > 0),  # the embeddings end with a norm
    **linear("attn.Wqkv", "head hd + head hd + head hd", "hidden", bias=attrgetter("attention_bias")),
    **linear("attn.Wo", "hidden", "head hd", bias=attrgetter("attention_bias")),
    **norm("mlp_norm", "hidden", bias=NORM_BIAS),
    **linear("mlp.Wi", "ffn + ffn", "hidden", bias=attrgetter("mlp_bias")),
    **linear("mlp.Wo", "hidden", "ffn", bias=attrgetter("mlp_bias")),
}
FINAL_NORM = norm("final_norm", "hidden", bias=NORM_BIAS)


def head(applied: str) -> dict[str, Labels]:
    """Label what every head begins with."""
    return {
        **FINAL_NORM,
        **linear("head.dense", "hidden", "hidden", bias=attrgetter("classifier_bias"), applied=applied),
        **norm("head.norm", "hidden", bias=NORM_BIAS),
    }


MODERNBERT = Family(
    model_type="modernbert",
    base="model",
    bare="ModernBertModel",
    stack="layers",
    num_layers=lambda config: config.num_hidden_layers,  # not alike: attention is local in some, global in others
    dims=(
        Dim("hidden", "hidden_size", per_layer=False, elastic=False),
        Dim("vocab", "vocab_size", per_layer=False, elastic=False),
        Dim("label", "num_labels", per_layer=False, elastic=False),
        Dim("one", lambda _: 1, per_layer=False, elastic=False),
        Dim("head", "num_attention_heads"),
        Dim("hd", lambda config: config.hidden_size // config.num_attention_heads, elastic=False, ordered=True),
        Dim("ffn", "intermediate_size"),
    ),
    embeddings={
        **embedding("embeddings.tok_embeddings", "vocab", "hidden"),
        **norm("embeddings.norm", "hidden", bias=NORM_BIAS),
    },
    layer=LAYER,
    architectures={
        "ModernBertModel": FINAL_NORM,
        "ModernBertForSequenceClassification": {
            **head("sequence"),
            **linear("classifier", "label", "hidden", applied="sequence"),
        },
        "ModernBertForTokenClassification": {**head("token"), **linear("classifier", "label", "hidden")},
        "ModernBertForQuestionAnswering": {**head("token"), **linear("classifier", "label", "hidden")},
        "ModernBertForMultipleChoice": {
            **head("sequence"),
            **linear("classifier", "one", "hidden", applied="sequence"),
        },
        "ModernBertForMaskedLM": {
            **head("token"),
            **linear(
                "decoder",
                "vocab",
                "hidden",
                bias=attrgetter("decoder_bias"),
                tied="embeddings.tok_embeddings.weight",
            ),
        },
    },
    blocks=(
        Block(
            "mha_block",
            {"attn_norm": "input", "attn": "zero, none"},
            nncf_start="</__add___1",
            nncf_end="/__add___0",
            nncf_first="embeddings.drop/dropout_0",
        ),
        Block("ffn_block", {"mlp_norm": "input", "mlp": "zero"}, nncf_start="/__add___0", nncf_end="/__add___1"),
        Block(
            "layer_block",
            {"": "input"},
            nncf_start="</__add___1",
            nncf_end="/__add___1",
            nncf_first="embeddings.drop/dropout_0",
        ),
    ),
    attention=(Attention("head", "hd"),),
    dropout=("embedding_dropout", "attention_dropout", "mlp_dropout"),
    max_length=lambda config: config.max_position_embeddings,
)
