"""Gemma: LLaMA's layers with norms that scale by 1 + w, after embeddings scaled by the root of the hidden size.

That factor is a constant of the trained model: it stays that of the full hidden size in every subnet. The config
derives it from its hidden size, so a smaller one is not expressed by it.
"""

from dataclasses import replace

from bootstrapnas.dims import Dim
from bootstrapnas.families.llama import ATTENTION_BIAS, like_llama

_LIKE_LLAMA = like_llama("gemma", "Gemma", qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS)
GEMMA = replace(
    _LIKE_LLAMA,
    dims=(Dim("hidden", lambda config: config.hidden_size, per_layer=False), *_LIKE_LLAMA.dims[1:]),
    follows=("GemmaRMSNorm", "GemmaTextScaledWordEmbedding"),
)
