"""What a subnet costs, in closed form: parameters and multiply-accumulates. Free of torch.

"MACs" here include the two matrix products of attention; `count_nncf_flops` is the count of stock NNCF, which leaves
them out. The "GFLOPs" of the EFTNAS and LoNAS papers are MACs in the first sense.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a cost depends on besides the subnet.

    Attributes
    ----------
    length
        Tokens of the sequence.
    latency
        Predicts the milliseconds of a subnet; `None` where nothing does.
    """

    length: int
    latency: Callable[[Subnet], float] | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """A cost that a search can minimise or bound: known of a subnet without running it, and the less the better.

    Attributes
    ----------
    name
        What flags and files call it.
    title
        What tables call it.
    count
        The cost of a subnet, in units of one or in `unit`.
    unit, scale
        What people read: the cost divided by `scale`, in `unit`.
    flag
        Its name in ``--max_<flag>``, where that says the unit; default: `name`.
    closed_form
        Whether it follows from the sizes alone, so that it is known of the full model too and shares of that can be
        asked for.
    """

    name: str
    title: str
    count: Callable[[Blueprint, Subnet, Conditions], float]
    unit: str = "M"
    scale: float = 1e6
    flag: str = ""
    closed_form: bool = True

    @property
    def bound_flag(self) -> str:
        """Its name in ``--max_...`` and ``--min_...``."""
        return self.flag or self.name

    def shown(self, value: float) -> str:
        """Return a value for people, for example ``"5,600.12 M MACs"``; small ones with two digits that count."""
        number = value / self.scale
        return f"{number:{',.2f' if number >= 0.1 else '.2g'}} {self.unit} {self.title}"


def _predicted_latency(blueprint: Blueprint, subnet: Subnet, conditions: Conditions) -> float:
    assert conditions.latency is not None, "a latency needs a predictor"
    return conditions.latency(subnet)


COSTS = {
    cost.name: cost
    for cost in (
        Cost("macs", "MACs", lambda blueprint, subnet, given: count_macs(blueprint, subnet, length=given.length)),
        Cost("params", "params", lambda blueprint, subnet, given: count_params(blueprint, subnet)),
        Cost(
            "params_without_embeddings",
            "params without embeddings",
            lambda blueprint, subnet, given: count_params(blueprint, subnet, embeddings=False),
        ),
        Cost("latency", "latency", _predicted_latency, unit="ms", scale=1.0, flag="latency_ms", closed_form=False),
    )
}
"""What a search can minimise or bound besides the metric, by name."""


def _in_stack(blueprint: Blueprint, name: str) -> bool:
    return name.startswith(f"{blueprint.prefix}{blueprint.family.stack}.")
