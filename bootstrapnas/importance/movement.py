"""Movement sparsity: scores of weights, trained together with them (Sanh et al. 2020), in NNCF's structured form.

A weight W has scores S, one per block of entries, and is used as W * 1[S > tau]. The gradient passes the step function
unchanged, so a score moves by what its block contributes to the loss: dL/dS is the sum over the block of dL/dW' * W.
The threshold tau and the strength of a penalty on the scores rise over a warm-up; after it scores and masks are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.errors import UserError, near_miss
from bootstrapnas.importance.structured import parameter_mask, resolve
from bootstrapnas.importance.structures import Structure
from bootstrapnas.modules import adopt, linear_classes, linear_shape

NO_THRESHOLD = -math.inf
_INITIAL_THRESHOLD = "movement_initial_threshold"


@dataclass(frozen=True, slots=True)
class MovementSettings:
    """The ``params`` of NNCF's ``movement_sparsity`` section.

    Attributes
    ----------
    warmup_start_epoch, warmup_end_epoch
        Epochs, fractions allowed, between which threshold and penalty rise. Before, nothing is masked and there is no
        penalty, but scores are trained; after, scores and masks are frozen.
    importance_regularization_factor
        The strength of the penalty at the end of the warm-up.
    power
        How steeply both rise at first: ``1 - (1 - progress) ** power``.
    init_importance_threshold
        The threshold at the first warm-up step. Default: such that about 0.1 % of the entries are masked.
    final_importance_threshold
        The threshold at the end of the warm-up.
    threshold_quantile_cap
        No tensor is masked beyond this quantile of its scores. Stock NNCF has 0.98; 1.0 (EFTNAS) lets all of it go.
    enable_structured_masking
        Whether the masks, when frozen, drop whole heads and channels and keep the others dense.
    compression_lr_multiplier
        Factor of the scores' gradients. Adam's steps do not depend on it, but for clipping; those of SGD do.

    Raises
    ------
    UserError
        If a value is out of its range.
    """

    warmup_start_epoch: float
    warmup_end_epoch: float
    importance_regularization_factor: float
    power: float = 3.0
    init_importance_threshold: float | None = None
    final_importance_threshold: float = 0.0
    threshold_quantile_cap: float = 1.0
    enable_structured_masking: bool = True
    compression_lr_multiplier: float = 1.0

    def __post_init__(self) -> None:
        start, end = self.warmup_start_epoch, self.warmup_end_epoch
        if not 0 <= start < end:
            raise UserError(f"movement sparsity: not 0 <= warmup_start_epoch ({start}) < warmup_end_epoch ({end})")
        if not self.importance_regularization_factor >= 0:
            raise UserError(
                f"importance_regularization_factor must not be negative, it is {self.importance_regularization_factor}"
            )
        if not self.power > 0:
            raise UserError(f"power must be positive, not {self.power}")
        if not 0 < self.threshold_quantile_cap <= 1:
            raise UserError(f"threshold_quantile_cap must be above 0 and at most 1, not {self.threshold_quantile_cap}")
        if not self.compression_lr_multiplier > 0:
            raise UserError(f"compression_lr_multiplier must be positive, not {self.compression_lr_multiplier}")

    def steps(self, steps_per_epoch: int) -> tuple[int, int]:
        """Return the first optimiser step of the warm-up and the first one after it."""
        return int(self.warmup_start_epoch * steps_per_epoch), int(self.warmup_end_epoch * steps_per_epoch)

    def ramp(self, step: int, steps_per_epoch: int) -> float:
        """Return how far threshold and penalty have risen at an optimiser step (counted from 0), from 0 to 1."""
        start, end = self.steps(steps_per_epoch)
        if step < start:
            return 0.0
        if step >= end:
            return 1.0
        progress = (step - start) / steps_per_epoch / (self.warmup_end_epoch - self.warmup_start_epoch)
        return 1.0 - (1.0 - progress) ** self.power


# -- modules -----------------------------------------------------------------------------------------------------------


class _Masked(torch.autograd.Function):
    """tensor [out, in], scores [a, b], mask [A, 1 or in] or None (all ones) -> each block times its mask [out, in]."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
        ctx.grid, ctx.dtype = scores.shape, scores.dtype
        ctx.save_for_backward(tensor if ctx.needs_input_grad[1] else None, mask)
        return tensor.view_as(tensor) if mask is None else _times(tensor, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        tensor, mask = ctx.saved_tensors
        d_scores = None if tensor is None else _block_sums(grad * tensor, ctx.grid, ctx.dtype)
        if not ctx.needs_input_grad[0]:
            return None, d_scores, None
        return grad if mask is None else _times(grad, mask), d_scores, None


def _times(tensor: Tensor, mask: Tensor) -> Tensor:
    """Multiply [out, in] by a mask [A, 1 or in] whose rows each cover out // A rows."""
    rows, columns = tensor.shape
    return (tensor.reshape(len(mask), -1, columns) * mask[:, None, :]).view(rows, columns)


def _block_sums(tensor: Tensor, grid: torch.Size, dtype: torch.dtype) -> Tensor:
    """Sum the entries of [out, in] over the equal blocks of a grid [a, b], in `dtype`."""
    rows, columns = tensor.shape
    if grid[0] < rows:  # first over rows: whole contiguous lines are added to each other
        tensor = tensor.reshape(grid[0], -1, columns).sum(1, dtype=dtype)
    if grid[1] < columns:
        tensor = tensor.reshape(grid[0], grid[1], -1).sum(2, dtype=dtype)
    return tensor.to(dtype)


class MovementLinear(nn.Module):
    """A linear layer with scored and masked weight and bias: x [..., in] -> [..., out].

    It has the parameters ``weight_importance`` [a, b] and, with a bias, ``bias_importance`` [a] beside its own. The
    masks are set from outside, once per optimiser step, and are in force in training and evaluation alike. Where the
    weight is held as [in, out] (Hugging Face's ``Conv1D``), its scores and masks are so as well, [b, a].

    What `of` returns is of a subclass of this and of the class of the layer.
    """

    _plain: type[nn.Module]
    _transposed: bool
    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_importance: nn.Parameter
    bias_importance: nn.Parameter
    weight_mask: Tensor | None
    bias_mask: Tensor | None

    @classmethod
    def of(cls, linear: nn.Module, structure: Structure) -> MovementLinear:
        """Return a scored form of a linear layer that holds the very same weight and bias; all scores are 0."""
        module: MovementLinear = adopt(type(f"Movement{type(linear).__name__}", (cls, type(linear)), {}), linear)
        module._plain, module._transposed = type(linear), not isinstance(linear, nn.Linear)
        shape = linear_shape(linear)
        rows, columns = structure.factors(shape)
        # At least float32: the moves of a score are far below the resolution of half precision.
        dtype = torch.promote_types(module.weight.dtype, torch.float32)
        zeros = partial(torch.zeros, dtype=dtype, device=module.weight.device)
        grid = (shape[0] // rows, shape[1] // columns)
        module.weight_importance = nn.Parameter(zeros(grid[::-1] if module._transposed else grid))
        module.register_buffer("weight_mask", None, persistent=False)
        if module.bias is not None:
            module.bias_importance = nn.Parameter(zeros(grid[0]))
            module.register_buffer("bias_mask", None, persistent=False)
        return module

    def plain(self) -> nn.Module:
        """Return the ordinary layer that this was, with the same weight and bias, unmasked, and drop the scores."""
        del self.weight_importance, self.weight_mask
        if self.bias is not None:
            del self.bias_importance, self.bias_mask
        plain = self._plain
        del self._plain, self._transposed
        return adopt(plain, self)

    def forward(self, input: Tensor) -> Tensor:
        weight = _Masked.apply(self.weight, self.weight_importance, self.weight_mask)
        bias = None
        if self.bias is not None:
            bias = _Masked.apply(self.bias[:, None], self.bias_importance[:, None], self.bias_mask).squeeze(1)
        return F.linear(input, weight.T if self._transposed else weight, bias)

    def scored(self) -> dict[str, tuple[Tensor, nn.Parameter]]:
        """Return leaf name -> the scored parameter as a matrix (as held, a bias as [out, 1]) and its scores."""
        found: dict[str, tuple[Tensor, nn.Parameter]] = {"weight": (self.weight, self.weight_importance)}
        if self.bias is not None:
            found["bias"] = (self.bias[:, None], self.bias_importance)
        return found

    def set_mask(self, leaf: str, kept: Tensor | None) -> None:
        """Mask the weight or bias by `kept` (bool): a grid [a, b] of equal blocks, or None for all of it."""
        tensor = self.scored()[leaf][0]
        if kept is not None:
            kept = kept.to(tensor.dtype)
            if 1 < kept.shape[1] < tensor.shape[1]:
                # Whole lines multiply faster than runs of one block's columns. Rows are not repeated, so this is small.
                repeats = tensor.shape[1] // kept.shape[1]
                kept = kept[:, :, None].expand(-1, -1, repeats).reshape(len(kept), -1)
        setattr(self, f"{leaf}_mask", kept)


# -- controller --------------------------------------------------------------------------------------------------------


class MovementSparsity:
    """The schedule of thresholds and penalty over the scored layers of a model; made by `attach`.

    Call `step` with the number of the optimiser step before each one and add `loss` to every loss.

    Scores are parameters of the model and the automatic initial threshold is one of its buffers, so a checkpoint of the
    model holds all there is; after loading one, the next `step` continues as if nothing had happened.

    Attributes
    ----------
    modules
        Module path -> scored layer.
    threshold
        The threshold in force; -inf before the warm-up.
    strength
        The strength of the penalty in force.
    frozen
        Whether the warm-up is over: masks are fixed and scores no longer trained.
    first_step, end_step
        The first optimiser step of the warm-up and the first one after it.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, MovementLinear],
        settings: MovementSettings,
        steps_per_epoch: int,
        blueprint: Blueprint | None,
    ) -> None:
        self.modules = dict(modules)
        self.settings = settings
        self.threshold = NO_THRESHOLD
        self.strength = 0.0
        self.frozen = False
        self.first_step, self.end_step = settings.steps(steps_per_epoch)
        self._model = model
        self._steps_per_epoch = steps_per_epoch
        self._blueprint = blueprint
        self._initial_threshold = settings.init_importance_threshold
        self._coefficients = torch.empty(0)
        # A buffer, so that it is saved and loaded with the scores; NaN until the first warm-up step.
        like = next(iter(self.modules.values())).weight_importance.detach()
        model.register_buffer(_INITIAL_THRESHOLD, like.new_full((), math.nan))

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Set threshold, penalty and masks for an optimiser step, counted from 0. Once frozen, nothing changes.

        Below, p is the progress through the warm-up and f = 1 - (1 - p)^power: the threshold is
        tau_0 + f (tau_final - tau_0), the strength of the penalty f times its factor.
        """
        if self.frozen or step < self.first_step:
            return
        ramp = self.settings.ramp(step, self._steps_per_epoch)
        initial = self._initial()
        self.threshold = initial + ramp * (self.settings.final_importance_threshold - initial)
        self.strength = ramp * self.settings.importance_regularization_factor
        self._mask()
        if step >= self.end_step:
            self._freeze()

    def loss(self) -> Tensor:
        """Return the penalty on the scores, scalar.

        The mean over layers of strength / 2 * (r c mean(sigmoid(S_weight)) + r mean(sigmoid(S_bias))), with blocks of r
        rows by c columns; 0 before the warm-up and once frozen.
        """
        scores = [scores for module in self.modules.values() for _, scores in module.scored().values()]
        if self.frozen or self.strength == 0.0:
            return torch.zeros((), device=scores[0].device)
        if self._coefficients.device != scores[0].device or not len(self._coefficients):
            # One vector over all scores, so that the penalty is a handful of operations however many layers there are.
            self._coefficients = torch.cat(
                [
                    (tensor.numel() / s.numel() / s.numel() / 2 / len(self.modules)) * torch.ones_like(s).flatten()
                    for module in self.modules.values()
                    for tensor, s in module.scored().values()
                ]
            ).detach()
        return self.strength * (torch.cat([s.flatten() for s in scores]).sigmoid() * self._coefficients).sum()

    def scores(self) -> dict[str, Tensor]:
        """Return parameter name -> a copy of its scores: weights [a, b], biases [a]."""
        return {
            f"{path}.{leaf}": scores.detach().clone()
            for path, module in self.modules.items()
            for leaf, (_, scores) in module.scored().items()
        }

    def masks(self) -> dict[str, Tensor]:
        """Return parameter name -> which of its blocks the threshold in force keeps, bool, shaped as its scores."""
        cap = self.settings.threshold_quantile_cap
        return {
            f"{path}.{leaf}": scores.detach() > _capped(self.threshold, scores.detach(), tensor.numel(), cap)
            for path, module in self.modules.items()
            for leaf, (tensor, scores) in module.scored().items()
        }

    def detach(self) -> None:
        """Put ordinary linear layers back into the model, with the weights as they are now, unmasked."""
        for path, module in self.modules.items():
            self._model.set_submodule(path, module.plain())
        delattr(self._model, _INITIAL_THRESHOLD)
        self.modules = {}

    def _initial(self) -> float:
        if self._initial_threshold is None:
            stored = self._model.get_buffer(_INITIAL_THRESHOLD)
            if stored.isnan():
                stored.fill_(self._smallest_scores_end())
            self._initial_threshold = float(stored)
        return self._initial_threshold

    def _smallest_scores_end(self) -> float:
        """Return the k-th smallest score over all N scored entries of the model, with k = int(N / 1000) + 1."""
        scores, repeats = [], []
        for module in self.modules.values():
            for tensor, s in module.scored().values():
                scores.append(s.detach().flatten())
                repeats.append(torch.full_like(scores[-1], tensor.numel() // s.numel(), dtype=torch.int64))
        values, order = torch.cat(scores).sort()
        ends = torch.cat(repeats)[order].cumsum(0)  # how many entries have a score up to this one
        rank = int(0.001 * int(ends[-1])) + 1
        return float(values[torch.searchsorted(ends, rank)])

    def _mask(self) -> None:
        for name, kept in self.masks().items():
            path, _, leaf = name.rpartition(".")
            self.modules[path].set_mask(leaf, kept.reshape(len(kept), -1))

    def _freeze(self) -> None:
        self.frozen = True
        for module in self.modules.values():
            for _, scores in module.scored().values():
                scores.requires_grad_(False)
                scores.grad = None
        if self._blueprint is not None:
            self._mask_units(self._blueprint)

    def _mask_units(self, blueprint: Blueprint) -> None:
        """Mask whole units: one lives if any of its blocks does, and then all of it. Layers without units stay."""
        units = resolve(blueprint, {name: kept.float() for name, kept in self.masks().items()}, 0.0)
        for path, module in self.modules.items():
            scored = module.scored()
            masks = {leaf: parameter_mask(blueprint, f"{path}.{leaf}", units) for leaf in scored}
            if masks["weight"] is not None:
                for leaf, kept in masks.items():
                    module.set_mask(leaf, None if kept is None else kept.view(scored[leaf][0].shape))


def attach(
    model: nn.Module, structures: Mapping[str, Structure], settings: MovementSettings, steps_per_epoch: int
) -> MovementSparsity:
    """Give linear layers of a model scores and masks, in place, and return their controller.

    Names and values of the model's own parameters stay. An optimiser must be made after this, for it trains the scores.

    Parameters
    ----------
    model
        A Hugging Face model; of a known family if the settings enable structured masking.
    structures
        Path of each linear layer to score (``nn.Linear`` or ``Conv1D``) -> granularity of its scores. Other layers are
        left alone.
    settings
        The schedule.
    steps_per_epoch
        Optimiser steps an epoch.

    Raises
    ------
    UserError
        If a path is not that of a linear layer, blocks do not tile a weight, there is nothing to score, the warm-up
        has no step, or the model is of no known family although structured masking is enabled.
    """
    if not structures:
        raise UserError("movement sparsity has no layer to score: ignored_scopes leave none")
    start, end = settings.steps(steps_per_epoch)
    if start == end:
        raise UserError(
            f"the warm-up from epoch {settings.warmup_start_epoch} to {settings.warmup_end_epoch} has no step "
            f"at {steps_per_epoch} steps an epoch; warmup_end_epoch must be later"
        )
    blueprint = Blueprint.of(model) if settings.enable_structured_masking else None
    linear = {path: module for path, module in model.named_modules() if type(module) in linear_classes()}
    for path, structure in structures.items():  # all mistakes first: a model is changed wholly or not at all
        if path not in linear:
            raise UserError(f"the model has no linear layer {path!r} to score{near_miss(path, linear)}")
        try:
            structure.factors(linear_shape(linear[path]))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    modules = {path: MovementLinear.of(linear[path], structure) for path, structure in structures.items()}
    for path, module in modules.items():
        model.set_submodule(path, module)
        if settings.compression_lr_multiplier != 1.0:
            for _, scores in module.scored().values():
                scores.register_hook(lambda gradient: gradient * settings.compression_lr_multiplier)
    return MovementSparsity(model, modules, settings, steps_per_epoch, blueprint)


def _capped(threshold: float, scores: Tensor, size: int, cap: float) -> float | Tensor:
    """Return the threshold, but no more than the `cap` quantile of the scores of the tensor's `size` entries.

    The quantile interpolates linearly, as ``torch.quantile`` of the scores repeated to full size would, which takes no
    more than 16 M entries. At 1.0 the cap is the largest score: a threshold at or above it masks everything anyway.
    """
    if cap == 1.0:
        return threshold
    values = scores.flatten().sort().values
    repeats = size // values.numel()
    position = cap * (size - 1)
    low = int(position)
    high = min(low + 1, size - 1)
    return torch.lerp(values[low // repeats], values[high // repeats], position - low).clamp(max=threshold)
