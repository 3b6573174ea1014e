"""Phi-3: LLaMA's computation with fused projections: queries, keys and values in one, a GLU's gate and input in one.

Its attention parts them by the numbers of heads that it reads from the config and from itself.
"""

from dataclasses import replace

from bootstrapnas.dims import linear, norm
from bootstrapnas.families.llama import like_llama

PHI3 = replace(
    like_llama("phi3", "Phi3"),
    layer={
        **norm("input_layernorm", "hidden", bias=False),
        **linear("self_attn.qkv_proj", "kv rep hd + kv hd + kv hd", "hidden", bias=False),
        **linear("self_attn.o_proj", "hidden", "kv rep hd", bias=False),
        **norm("post_attention_layernorm", "hidden", bias=False),
        **linear("mlp.gate_up_proj", "ffn + ffn", "hidden", bias=False),
        **linear("mlp.down_proj", "hidden", "ffn", bias=False),
    },
    dropout=("embd_pdrop", "resid_pdrop", "attention_dropout"),
    constants={"self_attn": {"config.num_attention_heads": "kv rep", "num_key_value_heads": "kv"}},
)
