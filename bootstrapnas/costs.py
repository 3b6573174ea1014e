"""What a subnet costs, in closed form: parameters and multiply-accumulates. Free of torch.

"MACs" here include the two matrix products of attention; `count_nncf_flops` is the count of stock NNCF, which leaves
them out. The "GFLOPs" of the EFTNAS and LoNAS papers are MACs in the first sense.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key, Subnet

FULL: Mapping[Key, int] = {}
"""The full network as a subnet: nothing is smaller."""


def count_params(blueprint: Blueprint, subnet: Subnet = FULL, *, embeddings: bool = True) -> int:
    """Return the number of parameters of a subnet, equal to the sum of ``numel()`` of the extracted model."""
    return sum(
        math.prod(blueprint.shape(parameter.name, subnet))
        for parameter in blueprint.parameters.values()
        if blueprint.exists(parameter, subnet) and (embeddings or not parameter.embedding)
    )


def count_linear_macs(blueprint: Blueprint, subnet: Subnet = FULL, *, length: int, head: bool = True) -> int:
    """Return the MACs of all linear layers for one sequence of `length` tokens.

    `head` = False leaves out what lies outside the stack of layers (pooler and task head).
    """
    total = 0
    for parameter in blueprint.uses.values():
        if parameter.applied and blueprint.exists(parameter, subnet) and (head or _in_stack(blueprint, parameter.name)):
            repeats = length if parameter.applied == "token" else 1
            total += repeats * math.prod(blueprint.shape(parameter.name, subnet))
    return total


def count_attention_macs(blueprint: Blueprint, subnet: Subnet = FULL, *, length: int) -> int:
    """Return the MACs of attention scores and weighted values for one sequence of `length` tokens."""
    return sum(
        2 * blueprint.product(product, subnet) * length**2
        for product, blocks in blueprint.attentions
        if all(blueprint.size(block, subnet) for block in blocks)
    )


def count_macs(blueprint: Blueprint, subnet: Subnet = FULL, *, length: int, head: bool = True) -> int:
    """Return the MACs of one sequence of `length` tokens (batch 1), attention products included."""
    return count_linear_macs(blueprint, subnet, length=length, head=head) + count_attention_macs(
        blueprint, subnet, length=length
    )


def count_nncf_flops(blueprint: Blueprint, subnet: Subnet = FULL, *, length: int) -> int:
    """Return stock NNCF's FLOPs: twice the MACs of the linear layers, without the products of attention."""
    return 2 * count_linear_macs(blueprint, subnet, length=length)


@dataclass(frozen=True, slots=True)
class Costs:
    """The closed-form costs of one subnet.

    Attributes
    ----------
    macs
        Multiply-accumulates of one sequence of `length` tokens, attention products included.
    nncf_macs
        The same by NNCF's stock count (without attention products).
    params, params_without_embeddings
        Numbers of parameters.
    length
        Tokens a sequence.
    """

    macs: int
    nncf_macs: int
    params: int
    params_without_embeddings: int
    length: int


def count_costs(blueprint: Blueprint, subnet: Subnet = FULL, *, length: int) -> Costs:
    """Return all closed-form costs of a subnet."""
    return Costs(
        macs=count_macs(blueprint, subnet, length=length),
        nncf_macs=count_linear_macs(blueprint, subnet, length=length),
        params=count_params(blueprint, subnet),
        params_without_embeddings=count_params(blueprint, subnet, embeddings=False),
        length=length,
    )


def _in_stack(blueprint: Blueprint, name: str) -> bool:
    return name.startswith(f"{blueprint.prefix}{blueprint.family.stack}.")
