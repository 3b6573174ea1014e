"""Frozen linear layers whose weights are integers, made floating point again whenever they are needed.

The numbers are those of nncf's weight compression at its defaults: unsigned integers with a zero point and a scale in
float16, one a row (int8) or one a group of a row's weights (int4). So an adapter is trained on the very weights that an
IR of the same format computes with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bootstrapnas.errors import UserError, listed, near_miss

WEIGHT_FORMATS = {"int8": 8, "int4": 4}
"""Name -> bits."""
GROUP, SMALLEST_GROUP = 128, 32
"""How many neighbouring int4 weights share a scale; rows that 128 does not divide get the largest power of two, from 32
on, that does, and are int8 where there is none."""


def check_weight_format(name: str) -> None:
    """Raise `UserError` if there is no such format of integers."""
    if name not in WEIGHT_FORMATS:
        raise UserError(
            f"unknown weight format {name!r} (known: {listed(WEIGHT_FORMATS)}){near_miss(name, WEIGHT_FORMATS)}"
        )


def quantise(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a matrix [out, in] as integers: weight ≈ (integers - zero) * scale.

    The range of each group is that of its weights and 0, as in nncf's ``calculate_integer_quantization_params``.

    Returns
    -------
    integers
        uint8 [out, in / group, group], from 0 to 2^bits - 1.
    zero
        uint8 [out, in / group, 1].
    scale
        float16 [out, in / group, 1].
    """
    grouped, top = weight.detach().float().unflatten(1, (-1, group)), 2**bits - 1
    low, high = grouped.amin(-1, keepdim=True).clamp(max=0), grouped.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / top).clamp(min=torch.finfo(torch.float32).eps)
    zero = (-(low / scale).round()).clamp(0, top)
    integers = (grouped / scale + zero).round().clamp(0, top)
    return integers.byte(), zero.byte(), scale.half()


class IntegerLinear(nn.Module):
    """``nn.Linear`` with frozen integer weights: x [..., in] -> [..., out], in the floating-point type of x.

    Two int4 weights lie in a byte. Gradients reach x only: a bias is frozen too.
    """

    _integers: Tensor
    _zero: Tensor
    _scale: Tensor

    def __init__(self, linear: nn.Linear, weight_format: str) -> None:
        super().__init__()
        check_weight_format(weight_format)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.bits, group = WEIGHT_FORMATS[weight_format], self.in_features
        if self.bits == 4:
            group = min(GROUP, self.in_features & -self.in_features)
            if group < SMALLEST_GROUP:
                self.bits, group = 8, self.in_features
        integers, zero, scale = quantise(linear.weight, self.bits, group)
        if self.bits == 4:
            integers = integers[..., ::2] | integers[..., 1::2] << 4
        self.register_buffer("_integers", integers)
        self.register_buffer("_zero", zero)
        # As bits: casting the model to another floating-point type must not change the weights.
        self.register_buffer("_scale", scale.view(torch.int16))

    @property
    def weight(self) -> Tensor:
        """The weights in float32, shape [out, in]: a new tensor."""
        integers = self._integers
        if self.bits == 4:
            integers = torch.stack((integers & 15, integers >> 4), dim=-1).flatten(-2)
        return ((integers.float() - self._zero) * self._scale.view(torch.float16)).flatten(1)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _Affine.apply(input, self)
        return output

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


class _Affine(torch.autograd.Function):
    """``x W^T + b``; W is made anew for the backward pass, as keeping it would take more memory than integers save."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: IntegerLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(input.dtype)
        return F.linear(input, layer.weight.to(input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ ctx.layer.weight.to(grad.dtype), None


def to_integers(model: nn.Module, paths: Iterable[str], weight_format: str) -> None:
    """Replace linear layers of a model, in place."""
    for path in paths:
        model.set_submodule(path, IntegerLinear(_linear(model, path), weight_format))


def round_to_integers(model: nn.Module, paths: Iterable[str], weight_format: str) -> None:
    """Give linear layers of a model, in place, the weights that `to_integers` would compute with."""
    for path in paths:
        linear = _linear(model, path)
        linear.weight.data = IntegerLinear(linear, weight_format).weight.to(linear.weight.dtype)


def _linear(model: nn.Module, path: str) -> nn.Linear:
    module = model.get_submodule(path)
    if not isinstance(module, nn.Linear):
        raise UserError(f"{path} is a {type(module).__name__}: integer weights are for nn.Linear only")
    return module
