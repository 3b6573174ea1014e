"""GPT-2: pre-norm decoder with learned positions; its linear layers hold their matrices as [in, out].

Queries, keys and values are fused one after the other, parted by a number that attention reads from itself. Where the
products of attention are scaled by the number of the layer, layers are not alike.
"""

from typing import Any

from bootstrapnas.dims import Dim, conv1d, embedding, linear, norm
from bootstrapnas.families.base import Attention, Block, Family

FINAL_NORM = norm("ln_f", "hidden")


def layers_are_alike(config: Any) -> bool:
    """Return whether what a layer computes does not depend on its number."""
    return not config.scale_attn_by_inverse_layer_idx


GPT2 = Family(
    model_type="gpt2",
    base="transformer",
    bare="GPT2Model",
    stack="h",
    num_layers="n_layer",
    alike=layers_are_alike,
    dims=(
        Dim("hidden", "n_embd", per_layer=False),
        Dim("vocab", "vocab_size", per_layer=False, elastic=False),
        Dim("position", "n_positions", per_layer=False, elastic=False),
        Dim("label", "num_labels", per_layer=False, elastic=False),
        Dim("head", "n_head"),
        Dim("hd", lambda config: config.n_embd // config.n_head, elastic=False),
        Dim("ffn", "n_inner", default=lambda config: 4 * config.n_embd),
    ),
    embeddings={**embedding("wte", "vocab", "hidden"), **embedding("wpe", "position", "hidden")},
    layer={
        **norm("ln_1", "hidden"),
        **conv1d("attn.c_attn", "head hd + head hd + head hd", "hidden"),
        **conv1d("attn.c_proj", "hidden", "head hd"),
        **norm("ln_2", "hidden"),
        **conv1d("mlp.c_fc", "ffn", "hidden"),
        **conv1d("mlp.c_proj", "hidden", "ffn"),
    },
    architectures={
        "GPT2Model": FINAL_NORM,
        "GPT2LMHeadModel": {**FINAL_NORM, **linear("lm_head", "vocab", "hidden", bias=False, tied="wte.weight")},
        "GPT2ForSequenceClassification": {**FINAL_NORM, **linear("score", "label", "hidden", bias=False)},
        "GPT2ForTokenClassification": {**FINAL_NORM, **linear("classifier", "label", "hidden")},
        "GPT2ForQuestionAnswering": {**FINAL_NORM, **linear("qa_outputs", "label", "hidden")},
    },
    blocks=(
        Block(
            "mha_block",
            {"ln_1": "input", "attn": "zero, none"},
            nncf_start="</__add___1",
            nncf_end="/__add___0",
            nncf_first="drop/dropout_0",
        ),
        Block(
            "ffn_block",
            {"ln_2": "input", "mlp": "zero"},
            nncf_start="/__add___0",
            nncf_end="/__add___1",
        ),
        Block(
            "layer_block",
            {"": "input"},
            nncf_start="</__add___1",
            nncf_end="/__add___1",
            nncf_first="drop/dropout_0",
        ),
    ),
    attention=(Attention("head", "hd"),),
    dropout=("embd_pdrop", "resid_pdrop", "attn_pdrop", "classifier_dropout"),
    max_length=lambda config: config.n_positions,
    follows=("Conv1D",),
    cache="attn",
    constants={
        "attn": {"split_size": "head hd"},
        "attn.c_attn": {"nf": "head hd + head hd + head hd"},
        "attn.c_proj": {"nf": "hidden"},
        "mlp.c_fc": {"nf": "ffn"},
        "mlp.c_proj": {"nf": "hidden"},
    },
)
