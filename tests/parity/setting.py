"""The model, the data and the settings on which NNCF and this project are compared.

Both sides import this file, each in an environment of its own, so it needs torch and transformers alone. Nothing in it
is random: weights and tokens are functions of their positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
LENGTH, BATCH, LAYERS, HIDDEN, HEADS, FFN, LABELS = 12, 8, 2, 64, 4, 128, 3
ROOT = "BertForSequenceClassification"

HEAD_WIDTHS = (64, 48, 16)
FFN_WIDTHS = (128, 96, 40)
SUBNETS: tuple[dict[str, Any], ...] = (
    {"width": [64, 64, 128, 128], "depth": []},
    {"width": [48, 16, 40, 96], "depth": []},
    {"width": [16, 16, 40, 40], "depth": []},
    {"width": [64, 48, 128, 40], "depth": [0]},
    {"width": [16, 64, 96, 128], "depth": [1, 2]},
    {"width": [48, 48, 96, 96], "depth": [0, 1, 2, 3]},
)
"""Widths of the groups (heads of both layers, FFN of both layers) and numbers of the skipped blocks."""

STEPS_PER_EPOCH = 4
STAGES = (
    {"train_dims": ["width"], "epochs": 2, "width_indicator": 2, "init_lr": 1e-3, "epochs_lr": 3},
    {"train_dims": ["width", "depth"], "epochs": 2, "width_indicator": 3, "depth_indicator": 2, "init_lr": 5e-4},
)
GLOBAL_LR = {"base_lr": 2e-3, "num_epochs": 4, "warmup_epochs": 1, "warmup_lr": 1e-4}
DISTILLATIONS = ({"type": "softmax", "scale": 1.5, "temperature": 2.0}, {"type": "mse", "scale": 0.5})
SEARCH = {
    "algorithm": "NSGA2",
    "num_evals": 24,
    "population": 8,
    "seed": 3,
    "mutation_prob": 0.02,
    "ref_acc": 30,
    "acc_delta": 5,
}

MOVEMENT = {
    "warmup_start_epoch": 1,
    "warmup_end_epoch": 3,
    "importance_regularization_factor": 0.05,
    "final_importance_threshold": 0.012,
    "steps_per_epoch": STEPS_PER_EPOCH,
}
MOVEMENT_STEPS = 4 * STEPS_PER_EPOCH
MOVEMENT_LR = 2e-3
STRUCTURES = (
    {"mode": "block", "sparse_factors": [16, 16], "target_scopes": "{re}.*BertAttention.*"},
    {"mode": "per_dim", "axis": 0, "target_scopes": "{re}.*BertIntermediate.*"},
    {"mode": "per_dim", "axis": 1, "target_scopes": "{re}.*BertOutput.*"},
)


def build_model() -> Any:
    """Build a BERT of two layers for three classes, without dropout."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=60,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FFN,
        max_position_embeddings=16,
        num_labels=LABELS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            positions = torch.arange(parameter.numel(), dtype=torch.float64)
            noise = torch.sin(positions * (1.7 + 0.13 * number) + positions**2 * 0.011)
            is_norm = parameter.dim() == 1 and bool((parameter == 1).all())
            parameter.copy_((float(is_norm) + 0.15 * noise).view(parameter.shape))
    return model.eval()


def batch(number: int) -> dict[str, Tensor]:
    """Return a batch of the task: ids [BATCH, LENGTH], of which some are padding, and labels [BATCH]."""
    positions = torch.arange(BATCH * LENGTH).view(BATCH, LENGTH)
    ids = (positions * 7 + positions**2 * 3 + number * 11) % 55 + 5
    lengths = LENGTH - torch.arange(BATCH) % 4
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    types = (positions % LENGTH > 6).long() * mask
    return {"input_ids": ids * mask, "token_type_ids": types, "attention_mask": mask, "labels": ids[:, 1] % LABELS}


def layer(index: int) -> str:
    return f"{ROOT}/BertModel[bert]/BertEncoder[encoder]/ModuleList[layer]/BertLayer[{index}]"


def nncf_config(
    *,
    stages: Any = STAGES,
    lr_schedule: Any = None,
    chained: bool = False,
    distillation: Any = None,
    **width: Any,
) -> dict[str, Any]:
    """Return a config in which heads, FFN channels and half-blocks of both layers are elastic, as EFTNAS has it.

    `chained` lists the blocks layer by layer, so that NNCF takes the two of a layer for a chain; `width` has further
    keys of that section.
    """
    layers = range(LAYERS)
    attention = [f"{layer(i)}/BertAttention[attention]" for i in layers]
    heads = [
        [f"{a}/BertSelfAttention[self]/NNCFLinear[{n}]/linear_0" for n in ("query", "key", "value")] for a in attention
    ]
    ffn = [[f"{layer(i)}/BertIntermediate[intermediate]/NNCFLinear[dense]/linear_0"] for i in layers]
    norms = [f"{a}/BertSelfOutput[output]/NNCFLayerNorm[LayerNorm]/layer_norm_0" for a in attention]
    starts = [f"{ROOT}/BertModel[bert]/BertEmbeddings[embeddings]/Dropout[dropout]/dropout_0"]
    starts += [f"{layer(i)}/BertOutput[output]/NNCFLayerNorm[LayerNorm]/layer_norm_0" for i in layers[:-1]]
    blocks = [[start, norm] for start, norm in zip(starts, norms, strict=True)]
    blocks += [[norm, f"{layer(i)}/BertOutput[output]/__add___0"] for i, norm in enumerate(norms)]
    if chained:
        blocks = [block for pair in zip(blocks[:LAYERS], blocks[LAYERS:], strict=True) for block in pair]
    training: dict[str, Any] = {
        "algorithm": "progressive_shrinking",
        "progressivity_of_elasticity": ["width", "depth"],
        "batchnorm_adaptation": {"num_bn_adaptation_samples": 0},
        "schedule": {"list_stage_descriptions": [dict(stage) for stage in stages]},
        "elasticity": {
            "available_elasticity_dims": ["width", "depth"],
            "width": {
                "overwrite_groups": heads + ffn,
                "overwrite_groups_widths": [list(HEAD_WIDTHS)] * LAYERS + [list(FFN_WIDTHS)] * LAYERS,
                "add_dynamic_inputs": [f"{a}/BertSelfOutput[output]/NNCFLinear[dense]/linear_0" for a in attention],
                **width,
            },
            "depth": {"skipped_blocks": blocks},
        },
    }
    if distillation is not None:
        training["compression"] = {"algorithm": "knowledge_distillation", **distillation}
    if lr_schedule is not None:
        training["lr_schedule"] = {"params": dict(lr_schedule)}
        for stage in training["schedule"]["list_stage_descriptions"]:
            stage.pop("init_lr")
            stage.pop("epochs_lr", None)
    return {
        "input_info": [{"sample_size": [1, LENGTH], "type": "long", "keyword": name} for name in INPUTS],
        "bootstrapNAS": {
            "training": training,
            "search": {**SEARCH, "batchnorm_adaptation": {"num_bn_adaptation_samples": 0}},
        },
    }


def movement_config() -> dict[str, Any]:
    """Return a config of movement sparsity in EFTNAS's granularity."""
    return {
        "input_info": [{"sample_size": [1, LENGTH], "type": "long", "keyword": name} for name in INPUTS],
        "compression": {
            "algorithm": "movement_sparsity",
            "params": {**MOVEMENT, "enable_structured_masking": True},
            "sparse_structure_by_scopes": list(STRUCTURES),
            "ignored_scopes": ["{re}.*NNCFEmbedding.*", "{re}.*LayerNorm.*", "{re}.*pooler.*", "{re}.*classifier.*"],
        },
    }


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of right answers, in percent."""
    return 100.0 * int((logits.argmax(-1) == labels).sum()) / len(labels)
