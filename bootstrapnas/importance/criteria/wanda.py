"""Weights times what they are applied to: needs some batches, but no gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.errors import UserError
from bootstrapnas.importance.criteria.base import Loss, elastic_parameters


@torch.no_grad()
def score_wanda(
    model: nn.Module, blueprint: Blueprint, batches: Iterable[Mapping[str, Any]], loss: Loss
) -> dict[str, Tensor]:
    """Score a weight of a linear layer by ``|w| * ||x||``, x being what it is applied to (Sun et al. 2023, Wanda).

    The norm is over all tokens of all batches, padding left out where the batch marks it, without dropout. Biases have
    no scores. The training mode of the model stays as it was.

    Raises
    ------
    UserError
        If there is no batch.
    """
    labels = blueprint.parameters
    weights = {n: p for n, p in elastic_parameters(model, blueprint).items() if labels[n].applied}
    squares = {name: torch.zeros(p.shape[labels[name].input], device=p.device) for name, p in weights.items()}
    real: Tensor | None = None

    def watch(name: str, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].float()
        tokens = x[real] if real is not None and real.shape == x.shape[:-1] else x.flatten(0, -2)
        squares[name] += tokens.square().sum(0)

    handles = [
        model.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(
            lambda module, inputs, name=name: watch(name, inputs)
        )
        for name in weights
    ]
    training, batch = model.training, None
    model.eval()
    try:
        for batch in batches:
            mask = batch.get("attention_mask")
            real = None if mask is None else mask.bool()
            loss(model, batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if batch is None:
        raise UserError("the criterion 'wanda' needs data, but there is no batch")
    norms = {name: found.sqrt().unsqueeze(1 - labels[name].input) for name, found in squares.items()}
    return {name: p.detach().float().abs() * norms[name] for name, p in weights.items()}
