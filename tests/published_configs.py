"""NNCF configs in the forms that were published for EFTNAS, LoNAS and Shears, made from their facts."""

from __future__ import annotations

from typing import Any

BERT = "BertForSequenceClassification"


def config_of(groups: list[list[str]], widths: list[list[int]], *, length: int, search: Any, **stage: Any) -> Any:
    """Return a config of one stage that trains widths."""
    return {
        "input_info": [
            {"sample_size": [1, length], "type": "long", "keyword": k} for k in ("input_ids", "attention_mask")
        ],
        "bootstrapNAS": {
            "training": {
                "algorithm": "progressive_shrinking",
                "progressivity_of_elasticity": ["width"],
                "batchnorm_adaptation": {"num_bn_adaptation_samples": 0},
                "schedule": {"list_stage_descriptions": [{"train_dims": ["width"], **stage}]},
                "elasticity": {
                    "available_elasticity_dims": ["width"],
                    "width": {"overwrite_groups": groups, "overwrite_groups_widths": widths},
                },
            },
            "search": {"algorithm": "NSGA2", **search},
        },
    }


def bert_layer(index: int, root: str = BERT) -> str:
    return f"{root}/BertModel[bert]/BertEncoder[encoder]/ModuleList[layer]/BertLayer[{index}]"


def eftnas(
    heads: list[tuple[int, ...]],
    ffn: list[tuple[int, ...]],
    *,
    head_dim: int = 64,
    length: int = 128,
    root: str = BERT,
    search: Any = None,
    **stage: Any,
) -> Any:
    """Return a config of EFTNAS: the heads and the FFN channels of each layer."""
    layers = range(len(heads))
    attention = [f"{bert_layer(i, root)}/BertAttention[attention]/BertSelfAttention[self]" for i in layers]
    groups = [[f"{a}/NNCFLinear[{name}]/linear_0" for name in ("query", "key", "value")] for a in attention]
    groups += [[f"{bert_layer(i, root)}/BertIntermediate[intermediate]/NNCFLinear[dense]/linear_0"] for i in layers]
    widths = [[head_dim * n for n in sizes] for sizes in heads] + [list(sizes) for sizes in ffn]
    config = config_of(groups, widths, length=length, search=search or {}, **stage)
    config["bootstrapNAS"]["training"]["elasticity"]["width"]["add_dynamic_inputs"] = [
        f"{bert_layer(i, root)}/BertAttention[attention]/BertSelfOutput[output]/NNCFLinear[dense]/linear_0"
        for i in layers
    ]
    return config


LONAS_SEARCH = {"num_evals": 200, "population": 8, "ref_acc": 0.45, "acc_delta": 0.01}


def lonas_llama(layers: int = 32, widths: tuple[int, ...] = (11008, 9632, 8256, 6880, 5504), base: str = "self") -> Any:
    """Return LoNAS's config of LLaMA: ranks of q, k, v; widths of gate and up with their lora_B; ranks of both."""
    frozen = {"self": "NNCFUserSelfLinear[self_linear]", "base": "NNCFLinear[base_layer]"}[base]
    lora_a, lora_b = (f"ModuleDict[lora_{which}]/NNCFLinear[default]" for which in "AB")
    root = "PeftModelForCausalLM/LoraModel[base_model]/LlamaForCausalLM[model]/LlamaModel[model]/ModuleList[layers]"

    def nodes(layer: int, block: str, *names: str) -> list[str]:
        return [f"{root}/LlamaDecoderLayer[{layer}]/{block}/Linear[{name}]/linear_0" for name in names]

    groups = [
        [f"{root}/LlamaDecoderLayer[{i}]/LlamaAttention[self_attn]/Linear[{n}_proj]/{lora_a}/linear_0" for n in "qkv"]
        for i in range(layers)
    ]
    mlp = [f"{root}/LlamaDecoderLayer[{i}]/LlamaMLP[mlp]" for i in range(layers)]
    groups += [
        [f"{m}/Linear[{n}_proj]/{part}/linear_0" for n in ("gate", "up") for part in (frozen, lora_b)] for m in mlp
    ]
    groups += [[f"{m}/Linear[{n}_proj]/{lora_a}/linear_0" for n in ("gate", "up")] for m in mlp]
    sizes = [[32, 28]] * layers + [list(widths)] * layers + [[32, 28]] * layers
    config = config_of(
        groups, sizes, length=256, search=LONAS_SEARCH, width_indicator=5, epochs=6, init_lr=3e-4, epochs_lr=6
    )
    config["bootstrapNAS"]["training"]["frozen_layers_allowed"] = True
    return config


def lonas_bloomz(layers: int = 30) -> Any:
    """Return LoNAS's config of BLOOMZ-7B1."""
    root = "PeftModelForCausalLM/LoraModel[base_model]/BloomForCausalLM[model]/BloomModel[transformer]/ModuleList[h]"
    lora = {which: f"ModuleDict[lora_{which}]/NNCFLinear[default]/linear_0" for which in "AB"}
    fused = "BloomAttention[self_attention]/Linear[query_key_value]"
    up = "BloomMLP[mlp]/Linear[dense_h_to_4h]"
    blocks = [f"{root}/BloomBlock[{i}]" for i in range(layers)]
    groups = [[f"{b}/{fused}/{lora['A']}"] for b in blocks]
    groups += [[f"{b}/{up}/NNCFUserSelfLinear[self_linear]/linear_0", f"{b}/{up}/{lora['B']}"] for b in blocks]
    groups += [[f"{b}/{up}/{lora['A']}"] for b in blocks]
    sizes = [[32, 28]] * layers + [[16384, 14336, 12288, 10240, 8192]] * layers + [[32, 28]] * layers
    return config_of(groups, sizes, length=256, search=LONAS_SEARCH, width_indicator=5, epochs=8, init_lr=3e-4)


def lonas_bert(layers: int = 12) -> Any:
    """Return LoNAS's config of BERT-base for GLUE, with one width list for all layers."""
    root = "PeftModelForSequenceClassification/LoraModel[base_model]/BertForSequenceClassification[model]"
    lora = {which: f"ModuleDict[lora_{which}]/NNCFLinear[default]/linear_0" for which in "AB"}
    attention = [f"{bert_layer(i, root)}/BertAttention[attention]/BertSelfAttention[self]" for i in range(layers)]
    groups = [
        [
            f"{a}/Linear[query]/NNCFUserSelfLinear[self_linear]/linear_0",
            f"{a}/Linear[query]/{lora['B']}",
            f"{a}/NNCFLinear[key]/linear_0",
            f"{a}/Linear[value]/NNCFUserSelfLinear[self_linear]/linear_0",
            f"{a}/Linear[value]/{lora['B']}",
        ]
        for a in attention
    ]
    groups += [[f"{a}/Linear[query]/{lora['A']}", f"{a}/Linear[value]/{lora['A']}"] for a in attention]
    groups += [
        [f"{bert_layer(i, root)}/BertIntermediate[intermediate]/NNCFLinear[dense]/linear_0"] for i in range(layers)
    ]
    sizes = [[768, 384]] * layers + [[8, 4, 2]] * layers + [[3072, 2634, 216]] * layers
    search = {"num_evals": 1000, "population": 40, "ref_acc": 0.85, "acc_delta": 0.01}
    config = config_of(groups, sizes, length=128, search=search, width_indicator=4, epochs=80, init_lr=3e-4)
    config["bootstrapNAS"]["training"] |= {"sandwich_rule": False, "frozen_layers_allowed": True}
    return config


def shears() -> Any:
    """Return a config of ranks alone, each group written once for every layer."""
    layer = (
        "{re}PeftModelForCausalLM/LoraModel[base_model]/LlamaForCausalLM[model]/LlamaModel[model]/ModuleList[layers]"
    )
    layer += "/LlamaDecoderLayer[{*}]"
    rank = "ModuleDict[lora_A]/NNCFLinear[default]/linear_0"
    groups = [
        [f"{layer}/LlamaAttention[self_attn]/Linear[{name}_proj]/{rank}" for name in "qkv"],
        [f"{layer}/LlamaMLP[mlp]/Linear[up_proj]/{rank}"],
        [f"{layer}/LlamaMLP[mlp]/Linear[down_proj]/{rank}"],
    ]
    return config_of(groups, [[32, 24, 16]] * 3, length=256, search={}, width_indicator=3, epochs=-1, init_lr=-1)
