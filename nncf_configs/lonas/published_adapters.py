"""The super-adapters published with LoNAS (Munoz et al., LREC-COLING 2024), and current models, as one table.

``generate.py`` writes the NNCF configs and the recipes from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj", "down_proj")
FFN_SHARES = (1.0, 0.875, 0.75, 0.625, 0.5)


@dataclass(frozen=True)
class AdapterModel:
    """A base model.

    Attributes
    ----------
    title
        What people call it.
    hub_id
        Where it is.
    architecture
        Class in transformers, for the task.
    config
        The sizes that its search space needs.
    targets
        Layers with adapters.
    rank, alpha, dropout
        Of the adapters.
    ranks
        Ranks to choose from.
    head_shares
        Shares of the key-value heads to choose from; published spaces of language models leave attention whole.
    """

    title: str
    hub_id: str
    architecture: str
    config: dict[str, Any]
    targets: tuple[str, ...] = LLAMA_TARGETS
    rank: int = 32
    alpha: int = 64
    dropout: float = 0.1
    ranks: tuple[int, ...] = (32, 28)
    head_shares: tuple[float, ...] = (1.0,)

    @property
    def published(self) -> bool:
        """Whether a published space is for it."""
        return self.title in ("LLaMA-7B", "LLaMA-13B", "BLOOMZ-7B1", "BERT-base")


def _llama(hidden: int, layers: int, heads: int, ffn: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"model_type": "llama", "vocab_size": 32000, **sizes, "intermediate_size": ffn, **more}


MODELS = {
    "llama_7b": AdapterModel(
        "LLaMA-7B", "huggyllama/llama-7b", "LlamaForCausalLM", _llama(4096, 32, 32, 11008),
    ),
    "llama_13b": AdapterModel(
        "LLaMA-13B",
        "huggyllama/llama-13b",
        "LlamaForCausalLM",
        _llama(5120, 40, 40, 13824),
        targets=("q_proj", "k_proj", "v_proj", "up_proj", "down_proj"),
    ),
    "bloomz_7b1": AdapterModel(
        "BLOOMZ-7B1",
        "bigscience/bloomz-7b1",
        "BloomForCausalLM",
        {"model_type": "bloom", "vocab_size": 250880, "hidden_size": 4096, "n_layer": 30, "n_head": 32},
        targets=("query_key_value", "dense_h_to_4h", "dense_4h_to_h"),
    ),
    "bert_base": AdapterModel(
        "BERT-base",
        "bert-base-uncased",
        "BertForSequenceClassification",
        {"model_type": "bert", "num_labels": 2},
        targets=("query", "value"),
        rank=8,
        alpha=16,
        ranks=(8, 4, 2),
    ),
    "llama_3.2_1b": AdapterModel(
        "Llama-3.2-1B",
        "meta-llama/Llama-3.2-1B",
        "LlamaForCausalLM",
        _llama(2048, 16, 32, 8192, num_key_value_heads=8, head_dim=64, vocab_size=128256, tie_word_embeddings=True),
        head_shares=(1.0, 0.75),
    ),
    "qwen3_0.6b": AdapterModel(
        "Qwen3-0.6B",
        "Qwen/Qwen3-0.6B",
        "Qwen3ForCausalLM",
        {
            "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
            "tie_word_embeddings": True,
        },
        head_shares=(1.0, 0.75),
    ),
    "qwen3_1.7b": AdapterModel(
        "Qwen3-1.7B",
        "Qwen/Qwen3-1.7B",
        "Qwen3ForCausalLM",
        {
            "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 6144,
            "tie_word_embeddings": True,
        },
        head_shares=(1.0, 0.75),
    ),
    "mistral_7b": AdapterModel(
        "Mistral-7B",
        "mistralai/Mistral-7B-v0.3",
        "MistralForCausalLM",
        {
            "model_type": "mistral", "vocab_size": 32768, "hidden_size": 4096, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 14336,
        },
        head_shares=(1.0, 0.75),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PublishedRun:
    """A task on a model and how it is trained.

    Attributes
    ----------
    model
        Key of `MODELS`.
    task
        GLUE task, ``commonsense`` or ``math``.
    epochs, lr
        Of the one stage, whose rate falls from `lr` to 0 along a cosine.
    batch
        Rows of a batch; of language models four are accumulated.
    """

    model: str
    task: str
    epochs: int
    lr: float = 3e-4
    batch: int = 4

    @property
    def is_glue(self) -> bool:
        return self.task not in ("commonsense", "math")

    @property
    def metric(self) -> str:
        """What it is searched and selected by."""
        return METRICS.get(self.task, "accuracy")


GLUE = {"rte": "RTE", "mrpc": "MRPC", "stsb": "STS-B", "cola": "CoLA", "sst2": "SST-2", "qnli": "QNLI", "qqp": "QQP",
        "mnli": "MNLI"}  # fmt: skip
METRICS = {"cola": "matthews_correlation", "stsb": "pearson"}
"""What GLUE tasks were searched by; the others by accuracy."""
TRAINED_ON = {"commonsense": "commonsense_15k.json", "math": "math_10k.json"}
"""Files of LLM-Adapters."""
RUNS = (
    PublishedRun("llama_7b", "commonsense", 6),
    PublishedRun("llama_7b", "math", 7),
    PublishedRun("llama_13b", "math", 6),
    PublishedRun("bloomz_7b1", "math", 8),
    PublishedRun("bert_base", "rte", 80, 3e-4, 32),
    PublishedRun("bert_base", "mrpc", 35, 5e-4, 32),
    PublishedRun("bert_base", "stsb", 60, 5e-4, 64),
    PublishedRun("bert_base", "cola", 80, 3e-4, 64),
    PublishedRun("bert_base", "sst2", 60, 3e-4, 64),
    PublishedRun("bert_base", "qnli", 80, 4e-4, 64),
    PublishedRun("bert_base", "qqp", 60, 3e-4, 64),
    PublishedRun("bert_base", "mnli", 40, 4e-4, 64),
    PublishedRun("llama_3.2_1b", "commonsense", 3),
    PublishedRun("qwen3_0.6b", "math", 3),
    PublishedRun("qwen3_1.7b", "math", 3),
    PublishedRun("mistral_7b", "commonsense", 3),
)

# BERT-base, the same for all tasks: heads x 64 a layer, and two FFN widths beside the full one.
BERT_HEADS = ((6,), (5,), (4,), (8,), (8,), (11,), (9,), (9,), (10,), (3,), (11, 3), (5,))
BERT_FFN = (
    (2634, 216), (2634, 181), (2627, 208), (2676, 226), (2628, 179), (2662, 175), (2706, 182), (2687, 169),
    (2616, 165), (2400, 160), (2198, 163), (1940, 150),
)  # fmt: skip
