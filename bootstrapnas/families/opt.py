"""OPT: decoder with learned positions; norms come before their halves of a layer or (350m) after them.

The hidden size is fixed: the embeddings have it, or (350m) a size of their own between two projections. A half-block
that is skipped takes its norm along, wherever that is.
"""

from operator import attrgetter
from typing import Any

from bootstrapnas.dims import Dim, Labels, embedding, linear, only_if
from bootstrapnas.dims import norm as affine_norm
from bootstrapnas.families.base import Attention, Block, Family

BIAS = attrgetter("enable_bias")
AFFINE = attrgetter("layer_norm_elementwise_affine")


def has_projections(config: Any) -> bool:
    """Return whether the embeddings have a size of their own."""
    return bool(config.word_embed_proj_dim != config.hidden_size)


def has_final_norm(config: Any) -> bool:
    """Return whether there is a norm, with parameters, after the layers."""
    return config.do_layer_norm_before and not config._remove_final_layer_norm and AFFINE(config)


def norm(name: str) -> dict[str, Labels]:
    """Label a LayerNorm over the hidden size, which has parameters or none."""
    return only_if(AFFINE, affine_norm(name, "hidden"))


BASE = {
    **only_if(has_final_norm, affine_norm("decoder.final_layer_norm", "hidden")),
    **only_if(has_projections, linear("decoder.project_in", "hidden", "embedding", bias=False)),
    **only_if(has_projections, linear("decoder.project_out", "embedding", "hidden", bias=False)),
}

OPT = Family(
    model_type="opt",
    base="model",
    bare="OPTModel",
    stack="decoder.layers",
    num_layers="num_hidden_layers",
    dims=(
        Dim("hidden", "hidden_size", per_layer=False, elastic=False, ordered=True),
        Dim("embedding", "word_embed_proj_dim", per_layer=False, elastic=False),
        Dim("vocab", "vocab_size", per_layer=False, elastic=False),
        Dim("position", lambda config: config.max_position_embeddings + 2, per_layer=False, elastic=False),
        Dim("label", "num_labels", per_layer=False, elastic=False),
        Dim("head", "num_attention_heads"),
        Dim("hd", lambda config: config.hidden_size // config.num_attention_heads, elastic=False),
        Dim("ffn", "ffn_dim"),
    ),
    embeddings={
        **embedding("decoder.embed_tokens", "vocab", "embedding"),
        **embedding("decoder.embed_positions", "position", "hidden"),
    },
    layer={
        **linear("self_attn.k_proj", "head hd", "hidden", bias=BIAS),
        **linear("self_attn.v_proj", "head hd", "hidden", bias=BIAS),
        **linear("self_attn.q_proj", "head hd", "hidden", bias=BIAS),
        **linear("self_attn.out_proj", "hidden", "head hd", bias=BIAS),
        **norm("self_attn_layer_norm"),
        **linear("fc1", "ffn", "hidden", bias=BIAS),
        **linear("fc2", "hidden", "ffn", bias=BIAS),
        **norm("final_layer_norm"),
    },
    architectures={
        "OPTModel": BASE,
        "OPTForCausalLM": {
            **BASE,
            **linear("lm_head", "vocab", "embedding", bias=False, tied="decoder.embed_tokens.weight"),
        },
        "OPTForSequenceClassification": {**BASE, **linear("score", "label", "embedding", bias=False)},
    },
    blocks=(
        Block(
            "mha_block",
            {"self_attn_layer_norm": "input", "self_attn": "zero, none"},
            nncf_start="</__add___1",
            nncf_end="/__add___0",
            nncf_first="decoder/__add___0",
        ),
        Block(
            "ffn_block",
            {"final_layer_norm": "input", "fc1": "input", "fc2": "zero"},
            nncf_start="/__add___0",
            nncf_end="/__add___1",
        ),
        Block(
            "layer_block",
            {"": "input"},
            nncf_start="</__add___1",
            nncf_end="/__add___1",
            nncf_first="decoder/__add___0",
        ),
    ),
    attention=(Attention("head", "hd"),),
    dropout=("dropout", "attention_dropout", "layerdrop"),
    max_length=lambda config: config.max_position_embeddings,
    cache="self_attn",
    constants={"self_attn": {"num_heads": "head"}},
)
