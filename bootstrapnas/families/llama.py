"""LLaMA and what has its layers (Mistral, Qwen2, Qwen3): pre-norm decoders with rotary positions.

The unit of attention is a key-value head with the query heads that read it. Their ratio stays, so that the code of
attention, which takes the number of heads from its tensors, needs no change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, TypeAlias

from bootstrapnas.dims import Dim, Labels, embedding, linear, norm
from bootstrapnas.families.base import Attention, Block, Family


def head_dim(config: Any) -> int:
    """Return the size of a head, which a config may state and else follows from the hidden size."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


DIMS = (
    Dim("hidden", "hidden_size", per_layer=False),
    Dim("vocab", "vocab_size", per_layer=False, elastic=False),
    Dim("label", "num_labels", per_layer=False, elastic=False),
    Dim("kv", "num_key_value_heads"),
    Dim("rep", lambda config: config.num_attention_heads // config.num_key_value_heads, elastic=False),
    Dim("hd", head_dim, elastic=False, ordered=True),
    Dim("ffn", "intermediate_size"),
)
FINAL_NORM = norm("norm", "hidden", bias=False)
BLOCKS = (
    Block(
        "mha_block",
        {"input_layernorm": "input", "self_attn": "zero, none"},
        nncf_start="</__add___1",
        nncf_end="/__add___0",
        nncf_first="embed_tokens/embedding_0",
    ),
    Block(
        "ffn_block",
        {"post_attention_layernorm": "input", "mlp": "zero"},
        nncf_start="/__add___0",
        nncf_end="/__add___1",
    ),
    Block(
        "layer_block",
        {"": "input"},
        nncf_start="</__add___1",
        nncf_end="/__add___1",
        nncf_first="embed_tokens/embedding_0",
    ),
)


def heads(stem: str) -> dict[str, dict[str, Labels]]:
    """Return the labels of the heads of classes called ``<stem>For…``, and of the base model."""
    return {
        f"{stem}Model": FINAL_NORM,
        f"{stem}ForCausalLM": {
            **FINAL_NORM,
            **linear("lm_head", "vocab", "hidden", bias=False, tied="embed_tokens.weight"),
        },
        f"{stem}ForSequenceClassification": {**FINAL_NORM, **linear("score", "label", "hidden", bias=False)},
        f"{stem}ForTokenClassification": {**FINAL_NORM, **linear("score", "label", "hidden")},
    }


Bias: TypeAlias = "bool | Callable[[Any], bool]"


def like_llama(
    model_type: str,
    stem: str,
    *,
    qkv_bias: Bias = False,
    o_bias: Bias = False,
    mlp_bias: Bias = False,
    norms: Mapping[str, Labels] = {},
    layer_types: str = "",
) -> Family:
    """Return the family of a model type with LLaMA's layers, whose classes are called ``<stem>For…``.

    `norms` are what a layer has besides LLaMA's, `layer_types` is the config attribute with the layers' attention.
    """
    return Family(
        model_type=model_type,
        base="model",
        bare=f"{stem}Model",
        stack="layers",
        num_layers="num_hidden_layers",
        dims=DIMS,
        embeddings=embedding("embed_tokens", "vocab", "hidden"),
        layer={
            **norm("input_layernorm", "hidden", bias=False),
            **linear("self_attn.q_proj", "kv rep hd", "hidden", bias=qkv_bias),
            **linear("self_attn.k_proj", "kv hd", "hidden", bias=qkv_bias),
            **linear("self_attn.v_proj", "kv hd", "hidden", bias=qkv_bias),
            **linear("self_attn.o_proj", "hidden", "kv rep hd", bias=o_bias),
            **norm("post_attention_layernorm", "hidden", bias=False),
            **linear("mlp.gate_proj", "ffn", "hidden", bias=mlp_bias),
            **linear("mlp.up_proj", "ffn", "hidden", bias=mlp_bias),
            **linear("mlp.down_proj", "hidden", "ffn", bias=mlp_bias),
            **norms,
        },
        architectures=heads(stem),
        blocks=BLOCKS,
        attention=(Attention("kv rep", "hd"),),
        dropout=("attention_dropout",),
        max_length=lambda config: config.max_position_embeddings,
        follows=(f"{stem}RMSNorm",),
        attributes={"num_attention_heads": "kv rep", "head_dim": "hd"},
        cache="self_attn",
        layer_types=layer_types,
    )


ATTENTION_BIAS = attrgetter("attention_bias")
HEAD_NORMS = {**norm("self_attn.q_norm", "hd", bias=False), **norm("self_attn.k_norm", "hd", bias=False)}

LLAMA = like_llama("llama", "Llama", qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS, mlp_bias=attrgetter("mlp_bias"))
MISTRAL = like_llama("mistral", "Mistral")
QWEN2 = like_llama("qwen2", "Qwen2", qkv_bias=True, layer_types="layer_types")
QWEN3 = like_llama(
    "qwen3", "Qwen3", qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS, norms=HEAD_NORMS, layer_types="layer_types"
)
