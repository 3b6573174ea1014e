"""NNCF's names of operations, and what they name: ``Root/Class[attribute]/.../NNCFLinear[query]/linear_0``.

A name holds the path of a module (the words in brackets) and one call of an operator in it. Class names differ between
versions of the libraries, so reading a name ignores them; writing one takes them from a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bootstrapnas.errors import UserError, near_miss

if TYPE_CHECKING:
    from torch import nn

_CLASS: Final = re.compile(r"[^/\[\]]+(?=\[)")
_ATTRIBUTE: Final = re.compile(r"\[([^\[\]]+)\]$")
_OLD_ATTRIBUTES: Final = {"self_linear": "base_layer"}  # what the peft of LoNAS called the frozen layer
_PEFT_MODEL: Final = "PeftModel"
_PEFT_PREFIX: Final = "base_model.model."
_REGEX_MARK: Final = "{re}"
EVERY_LAYER: Final = "{*}"
"""Stands for the number of a layer in a node name that is written once for all layers."""


def module_path(node_name: str) -> str:
    """Return the path of the module that a node belongs to, for example ``bert.encoder.layer.0.intermediate.dense``.

    Old attribute names are replaced by today's, and peft's wrappers around the model are left out. A name without
    brackets belongs to the root: ``""``.
    """
    found = (_ATTRIBUTE.search(element) for element in node_name.split("/"))
    path = ".".join(_OLD_ATTRIBUTES.get(match[1], match[1]) for match in found if match)
    wrapped = node_name.startswith(_PEFT_MODEL) and path.startswith(_PEFT_PREFIX)
    return path.removeprefix(_PEFT_PREFIX) if wrapped else path


def operation(node_name: str) -> str:
    """Return ``"<module path>/<operator>_<call>"``: the node's name without the names of classes."""
    return f"{module_path(node_name)}/{node_name.rpartition('/')[2]}"


def scope_matcher(scopes: Iterable[str]) -> Callable[[str], bool]:
    """Return whether a node name is in one of NNCF's scopes: exact names, prefixes, or ``{re}`` and a regex.

    A regex sees the names of classes; other scopes match whatever the classes are called.

    Raises
    ------
    UserError
        If a regex is malformed.
    """
    names = []
    patterns = []
    for scope in scopes:
        if not scope.startswith(_REGEX_MARK):
            names += [scope, *([_classless(scope)] if "[" in scope else [])]
            continue
        try:
            patterns.append(re.compile(scope.removeprefix(_REGEX_MARK)))
        except re.error as error:
            raise UserError(f"scope {scope!r} is not a regular expression: {error}") from None

    def matches(node_name: str) -> bool:
        found = any(name.startswith(tuple(names)) for name in (node_name, _classless(node_name)))
        return found or any(pattern.match(node_name) for pattern in patterns)

    return matches


def _classless(node_name: str) -> str:
    """Return a node name, or the beginning of one, without the names of classes."""
    return _CLASS.sub("", node_name.partition("/")[2])


@dataclass(frozen=True, slots=True)
class NodeNames:
    """The names that NNCF gives to the modules of one model.

    Attributes
    ----------
    scopes
        Module path -> NNCF's name up to the module, for example ``"Root/.../NNCFLinear[query]"``.
    linears
        Module path -> full node name, of every linear layer.
    """

    scopes: Mapping[str, str]
    linears: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> NodeNames:
        """Name the modules of a model (plain, elastic or masked: the names are the same)."""
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        prefixed = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d)

        def class_name(module: nn.Module) -> str:
            known = next((kind for kind in prefixed if isinstance(module, kind)), None)
            if known is not None:
                return f"NNCF{known.__name__}"
            # Elastic modules subclass the module whose place they take.
            return next(c for c in type(module).__mro__ if not c.__module__.startswith("bootstrapnas")).__name__

        scopes: dict[str, str] = {}
        for path, module in model.named_modules():
            parent, _, attribute = path.rpartition(".")
            scopes[path] = f"{scopes[parent]}/{class_name(module)}[{attribute}]" if path else class_name(module)
        operators = {nn.Linear: "linear_0", Conv1D: "addmm_0"}
        linears = {
            path: f"{scopes[path]}/{operator}"
            for path, module in model.named_modules()
            for kind, operator in operators.items()
            if isinstance(module, kind)
        }
        return cls(scopes, linears)

    def node(self, operation: str) -> str:
        """Return the full name of ``"<module path>/<operator>_<call>"``.

        Raises
        ------
        UserError
            If the model has no such module.
        """
        path, _, operator = operation.rpartition("/")
        if path not in self.scopes:
            raise UserError(f"the model has no module {path!r}{near_miss(path, self.scopes)}")
        return f"{self.scopes[path]}/{operator}"
