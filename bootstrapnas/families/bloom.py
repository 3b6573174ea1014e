"""BLOOM: pre-norm decoder whose queries, keys and values are fused head by head, with ALiBi in the place of positions.

ALiBi gives every head a slope by its number, the same in all layers, so heads have neither another order nor a smaller
number. The FFN has four times the hidden size: a config expresses no other.
"""

from bootstrapnas.dims import Dim, embedding, linear, norm
from bootstrapnas.families.base import Attention, Block, Family

FINAL_NORM = norm("ln_f", "hidden")
BLOCKS = (
    # The modules of a half-block add their residual, their second argument; it is the input of the norm before them.
    Block(
        "mha_block",
        {"input_layernorm": "input", "self_attention": "input, none"},
        nncf_start="<mlp/__add___0",
        nncf_end="self_attention/__add___0",
        nncf_first="word_embeddings_layernorm/layer_norm_0",
    ),
    Block(
        "ffn_block",
        {"post_attention_layernorm": "input", "mlp": "input"},
        nncf_start="self_attention/__add___0",
        nncf_end="mlp/__add___0",
    ),
    Block(
        "layer_block",
        {"": "input, none"},
        nncf_start="<mlp/__add___0",
        nncf_end="mlp/__add___0",
        nncf_first="word_embeddings_layernorm/layer_norm_0",
    ),
)

BLOOM = Family(
    model_type="bloom",
    base="transformer",
    bare="BloomModel",
    stack="h",
    num_layers="n_layer",
    dims=(
        Dim("hidden", "hidden_size", per_layer=False),
        Dim("vocab", "vocab_size", per_layer=False, elastic=False),
        Dim("label", "num_labels", per_layer=False, elastic=False),
        Dim("head", "n_head", elastic=False, ordered=True),
        Dim("three", lambda _: 3, elastic=False),
        Dim("hd", lambda config: config.hidden_size // config.n_head, elastic=False),
        Dim("ffn", lambda config: 4 * config.hidden_size),
    ),
    embeddings={
        **embedding("word_embeddings", "vocab", "hidden"),
        **norm("word_embeddings_layernorm", "hidden"),
    },
    layer={
        **norm("input_layernorm", "hidden"),
        **linear("self_attention.query_key_value", "head three hd", "hidden"),
        **linear("self_attention.dense", "hidden", "head hd"),
        **norm("post_attention_layernorm", "hidden"),
        **linear("mlp.dense_h_to_4h", "ffn", "hidden"),
        **linear("mlp.dense_4h_to_h", "hidden", "ffn"),
    },
    architectures={
        "BloomModel": FINAL_NORM,
        "BloomForCausalLM": {
            **FINAL_NORM,
            **linear("lm_head", "vocab", "hidden", bias=False, tied="word_embeddings.weight"),
        },
        "BloomForSequenceClassification": {**FINAL_NORM, **linear("score", "label", "hidden", bias=False)},
        "BloomForTokenClassification": {**FINAL_NORM, **linear("classifier", "label", "hidden")},
    },
    blocks=BLOCKS,
    attention=(Attention("head", "hd"),),
    dropout=("hidden_dropout", "attention_dropout"),
    cache="self_attention",
)
