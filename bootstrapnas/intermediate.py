"""What student and teacher compute inside their layers: recorded during a forward pass, and compared.

A `Term` says which modules of each layer are recorded and how a layer of the student is held against the teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bootstrapnas.dims import parse_axis
from bootstrapnas.errors import UserError
from bootstrapnas.families import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Parts: TypeAlias = tuple[int, ...]
Recorded: TypeAlias = Sequence[Sequence[Tensor]]
"""Per layer, the tensors [batch, tokens, channels] recorded in it; none where a block is skipped."""


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison of what two models compute inside.

    Attributes
    ----------
    name
        What it is called in messages, too.
    modules
        Model -> per layer, the modules to record, each with the parts that its output consists of: their sizes, or
        numbers in the same proportion.
    compare
        The tensors of a student's layer, those of the teacher's layer, and the mask [batch, tokens] of real tokens ->
        scalar, a mean over the batch.
    check
        Student, teacher -> nothing; `UserError` if the two cannot be compared.
    """

    name: str
    modules: Callable[[PreTrainedModel], list[list[tuple[nn.Module, Parts]]]]
    compare: Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Tensor]
    check: Callable[[PreTrainedModel, PreTrainedModel], None]


@contextmanager
def recording(model: PreTrainedModel, terms: Sequence[Term]) -> Iterator[dict[str, list[list[Tensor]]]]:
    """Record, inside the ``with`` block, what `terms` compare, by name. One forward pass belongs into it."""
    found: dict[str, list[list[Tensor]]] = {}
    handles = []
    try:
        for term in terms:
            layers = term.modules(model)
            found[term.name] = [[] for _ in layers]
            for place, modules in zip(found[term.name], layers, strict=True):
                handles += [module.register_forward_hook(_keep(place, parts)) for module, parts in modules]
        yield found
    finally:
        for handle in handles:
            handle.remove()


def compared(term: Term, student: Recorded, teacher: Recorded, mask: Tensor) -> Tensor:
    """Return the mean of a term over the student's layers, scalar; each is held against the one as deep in the teacher.

    Layers in which nothing was computed, on either side, do not count.
    """
    layers, wanted = len(student), len(teacher)
    pairs = [(found, teacher[matching_layer(index, layers, wanted)]) for index, found in enumerate(student)]
    losses = [term.compare(ours, theirs, mask) for ours, theirs in pairs if ours and theirs]
    return torch.stack(losses).mean() if losses else mask.new_zeros((), dtype=torch.float32)


def matching_layer(index: int, layers: int, teacher_layers: int) -> int:
    """Return the teacher's layer for the student's layer `index`: as deep in proportion, the last for the last."""
    return max(0, round((index + 1) * teacher_layers / layers) - 1)


def _keep(place: list[Tensor], parts: Parts) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        unit = tensor.shape[-1] // sum(parts)
        place.extend(tensor.split([unit * part for part in parts], dim=-1))

    return hook


def _layers(model: PreTrainedModel) -> Sequence[nn.Module]:
    stack: Any = model.base_model.get_submodule(family_of(model.config).stack)
    return list(stack)


# -- hidden states -----------------------------------------------------------------------------------------------------


def _layer_outputs(model: PreTrainedModel) -> list[list[tuple[nn.Module, Parts]]]:
    return [[(layer, (1,))] for layer in _layers(model)]


def relative_error(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Return the squared error of hidden states over the teacher's squared norm, a mean over the batch, scalar.

    Per row, real tokens only: 0 where they agree, 1 for a student that says nothing, whatever the layer's scale.
    """
    (ours,), (theirs,) = student, teacher
    if ours.shape != theirs.shape:
        raise UserError(_other_width(ours.shape[-1], theirs.shape[-1]))
    ours, theirs, real = ours.float(), theirs.float(), mask[:, :, None].float()
    error = ((ours - theirs).square() * real).sum(dim=(1, 2))
    return (error / (theirs.square() * real).sum(dim=(1, 2)).clamp(min=1e-12)).mean()


def _same_width(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    if student.config.hidden_size != teacher.config.hidden_size:
        raise UserError(_other_width(student.config.hidden_size, teacher.config.hidden_size))


def _other_width(student: int, teacher: int) -> str:
    return (
        f"hidden states of size {student} (model) and {teacher} (teacher) cannot be compared; use --kd_mode original "
        "or attention_relations"
    )


# -- self-attention relations ------------------------------------------------------------------------------------------

SHARPNESS = 8.0
"""Of relations: the square root of the usual head size, so that they are as sharp as attention is."""


def _projections(model: PreTrainedModel) -> list[list[tuple[nn.Module, Parts]]]:
    """Return per layer the modules whose outputs are heads (queries, keys, values), by the family's labels."""
    family = family_of(model.config)
    if not family.attention:
        raise UserError(f"family {family.model_type!r} declares no attention: use another --kd_mode")
    heads = family.attention[0].heads.split()[0]
    sizes = {dim.name: dim.size(model.config) for dim in family.dims}
    paths: dict[str, Parts] = {}
    for name, labels in family.layer.items():
        out = parse_axis(labels.outputs)
        if name.endswith(".weight") and labels.applied and all(heads in product for product in out):
            per_unit = [math.prod(sizes[dim] for dim in product if dim != heads) for product in out]
            paths[name.removesuffix(".weight")] = tuple(size // math.gcd(*per_unit) for size in per_unit)
    found = []
    for layer in _layers(model):
        modules = dict(layer.named_modules())  # a skipped block of an extracted model has none of them
        found.append([(modules[path], parts) for path, parts in paths.items() if path in modules])
    return found


def relation_divergence(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Return KL(teacher || student) of self-attention relations, a mean over queries, keys and values, scalar.

    A relation is the softmax over tokens of the products of a token's vector with every other's (Wang et al. 2021,
    MiniLMv2), averaged over heads: it depends neither on their number nor on their order, so that a subnet that keeps
    a few heads, in the order of importance, can be held against its teacher. Real tokens only; a mean over the batch.
    """
    terms = []
    for ours, theirs in zip(student, teacher, strict=True):
        wanted = _relations(theirs, mask)
        divergence = F.kl_div(_relations(ours, mask), wanted, reduction="none", log_target=True).sum(-1)
        terms.append(((divergence * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean())
    return torch.stack(terms).mean()


def _relations(vectors_BSC: Tensor, mask: Tensor) -> Tensor:
    """Return the log-probabilities [batch, tokens, tokens]."""
    vectors_BSC = vectors_BSC.float()
    products = vectors_BSC @ vectors_BSC.transpose(1, 2) * (SHARPNESS / vectors_BSC.shape[-1])
    lowest = torch.finfo(products.dtype).min / 2  # not -inf: 0 * inf is NaN, here and in the gradient
    return F.log_softmax(products.masked_fill(mask[:, None, :] == 0, lowest), dim=-1)


def _any_width(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Relations of any two models can be compared."""


TERMS: Mapping[str, Term] = {
    term.name: term
    for term in (
        Term("hidden_states", _layer_outputs, relative_error, _same_width),
        Term("attention_relations", _projections, relation_divergence, _any_width),
    )
}
