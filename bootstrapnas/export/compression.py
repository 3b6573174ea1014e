"""Weights as integers, activations as they are: nncf's weight compression."""

from __future__ import annotations

from typing import Any

from bootstrapnas.export.quiet import quiet_nncf

COMPRESSED = {"int8": "INT8_ASYM", "int4": "INT4_ASYM"}
"""Weight formats that are integers, and what nncf calls them."""


def compress(ir: Any, name: str, weight_format: str) -> Any:
    """Return an `openvino.Model` with the weights of `ir` in `weight_format`; `ir` may be changed.

    Raises
    ------
    ExportError
        If nncf cannot compress the model called `name`.
    """
    import nncf

    with quiet_nncf(f"nncf cannot compress {name}"):
        return nncf.compress_weights(ir, mode=nncf.CompressWeightsMode[COMPRESSED[weight_format]])
