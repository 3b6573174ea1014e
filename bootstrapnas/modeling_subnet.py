"""A network whose layers have different widths, rebuilt from the layout in its config. Needs only torch.

`shrink` turns a full-size model into the smaller one that ``config.subnet`` describes, before any weight is loaded.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn


class Input(nn.Module):
    """Stands in for a skipped module: returns its first argument."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))


class InputAndNone(Input):
    """Stands in for a skipped module that returns a pair: its first argument and None."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs), None


class Zero(Input):
    """Stands in for a skipped module whose output is added to something: returns 0."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs).new_zeros(())


class ZeroAndNone(Zero):
    """Stands in for a skipped module whose output, the first of a pair, is added to something."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs), None


STAND_INS = {"input": Input, "input, none": InputAndNone, "zero": Zero, "zero, none": ZeroAndNone}


class Changed:
    """Another object but for some attributes: the config as one layer's code is to read it."""

    def __init__(self, other: Any, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes, _other=other)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_other":  # what copying asks for
            raise AttributeError(name)
        return getattr(self._other, name)


def set_attributes(module: nn.Module, attributes: Mapping[str, Any]) -> None:
    """Set attributes of a module itself; "config.num_heads" is that of its config, as this module alone reads it."""
    changed: dict[str, dict[str, Any]] = {}
    for name, value in attributes.items():
        owner, _, leaf = name.rpartition(".")
        if owner:
            changed.setdefault(owner, {})[leaf] = value
        else:
            vars(module)[leaf] = value
    for owner, values in changed.items():
        vars(module)[owner] = Changed(vars(module)[owner], values)


def shrink(model: nn.Module, layout: dict[str, Any]) -> None:
    """Resize `model` in place.

    layout["stand_ins"]: module path -> what stands in for it; layout["shapes"]: parameter name -> its smaller shape;
    layout["attributes"]: module path -> the attributes that its code reads and that differ from the full model's.
    """
    for path, stand_in in layout["stand_ins"].items():
        substitute = STAND_INS[stand_in]()
        # What calls a module may read its plain attributes, such as the kind of attention of a layer.
        old = vars(model.get_submodule(path))
        vars(substitute).update({name: value for name, value in old.items() if isinstance(value, str)})
        model.set_submodule(path, substitute)
    for name, shape in layout["shapes"].items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, leaf)
        # A part of the old tensor, not an empty one: a model built from its config alone is initialised already.
        part = old.detach()[tuple(slice(size) for size in shape)].clone()
        setattr(module, leaf, nn.Parameter(part, requires_grad=old.requires_grad))
        if leaf == "weight" and isinstance(module, nn.Linear):
            module.out_features, module.in_features = shape
        elif leaf == "weight" and isinstance(module, nn.Embedding):
            module.num_embeddings, module.embedding_dim = shape
        elif leaf == "weight" and isinstance(module, nn.LayerNorm):
            module.normalized_shape = tuple(shape)
    for path, attributes in layout.get("attributes", {}).items():
        set_attributes(model.get_submodule(path), attributes)
