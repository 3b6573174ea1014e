"""GPT-NeoX (Pythia): decoder whose queries, keys and values are fused head by head, with rotary positions.

Attention and FFN read the same input (parallel residual) or one after the other, as the config says.
"""

from operator import attrgetter

from bootstrapnas.dims import Dim, embedding, linear, norm
from bootstrapnas.families.base import Attention, Block, Family

ATTENTION_BIAS = attrgetter("attention_bias")
FINAL_NORM = norm("final_layer_norm", "hidden")

GPT_NEOX = Family(
    model_type="gpt_neox",
    base="gpt_neox",
    bare="GPTNeoXModel",
    stack="layers",
    num_layers="num_hidden_layers",
    dims=(
        Dim("hidden", "hidden_size", per_layer=False),
        Dim("vocab", "vocab_size", per_layer=False, elastic=False),
        Dim("label", "num_labels", per_layer=False, elastic=False),
        Dim("head", "num_attention_heads"),
        Dim("three", lambda _: 3, elastic=False),
        Dim("hd", lambda config: config.hidden_size // config.num_attention_heads, elastic=False, ordered=True),
        Dim("ffn", "intermediate_size"),
    ),
    embeddings=embedding("embed_in", "vocab", "hidden"),
    layer={
        **norm("input_layernorm", "hidden"),
        **norm("post_attention_layernorm", "hidden"),
        **linear("attention.query_key_value", "head three hd", "hidden", bias=ATTENTION_BIAS),
        **linear("attention.dense", "hidden", "head hd", bias=ATTENTION_BIAS),
        **linear("mlp.dense_h_to_4h", "ffn", "hidden"),
        **linear("mlp.dense_4h_to_h", "hidden", "ffn"),
    },
    architectures={
        "GPTNeoXModel": FINAL_NORM,
        "GPTNeoXForCausalLM": {
            **FINAL_NORM,
            **linear("lm_head", "vocab", "hidden", bias=False, tied="embed_in.weight"),
        },
        "GPTNeoXForSequenceClassification": {**FINAL_NORM, **linear("score", "label", "hidden", bias=False)},
        "GPTNeoXForTokenClassification": {**FINAL_NORM, **linear("classifier", "label", "hidden")},
    },
    blocks=(
        Block(
            "mha_block",
            {"input_layernorm": "input", "attention": "zero, none"},
            nncf_start="</__add___1",
            nncf_end="post_attention_dropout/dropout_0",
            nncf_first="emb_dropout/dropout_0",
        ),
        Block(
            "ffn_block",
            {"post_attention_layernorm": "input", "mlp": "zero"},
            nncf_start="</__add___1",
            nncf_end="post_mlp_dropout/dropout_0",
            nncf_first="emb_dropout/dropout_0",
        ),
        Block(
            "layer_block",
            {"": "input"},
            nncf_start="</__add___1",
            nncf_end="/__add___1",
            nncf_first="emb_dropout/dropout_0",
        ),
    ),
    attention=(Attention("head", "hd"),),
    dropout=("hidden_dropout", "attention_dropout", "classifier_dropout"),
    max_length=lambda config: config.max_position_embeddings,
    cache="attention",
)
