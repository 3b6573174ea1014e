"""Linear layers of integers: the numbers are those of an IR, gradients are right, and memory is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from causal_models import TEXTS, build_causal, build_tokenizer
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from bootstrapnas.adapters import adapter_supernet, add_adapters, base_linears
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.export import WeightCompression, export_openvino
from bootstrapnas.families.adapted import Adapters
from bootstrapnas.integers import IntegerLinear, to_integers

FORMATS = ("int8", "int4")


def build_linear(inputs: int = 256, outputs: int = 48, *, bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def unpacked(constant: Any) -> np.ndarray:
    """Return the integers of a constant, float32; int4 ones lie in pairs, the first in the lower half of a byte."""
    values = constant.data
    if constant.get_element_type().to_string() == "u4":
        values = np.stack((values & 15, values >> 4), axis=-1)
    return values.reshape(constant.get_output_shape(0)).astype(np.float32)


def ir_weights(directory: Path) -> dict[str, np.ndarray]:
    """Return the matrices that an IR computes with, by parameter: what its constants of integers stand for."""
    import openvino as ov

    found = {}
    for operation in ov.Core().read_model(directory / "openvino_model.xml").get_ops():
        name = operation.get_friendly_name()
        if operation.get_type_name() == "Multiply" and name.endswith("/fq_weights_1"):
            subtract, scale = (operation.input_value(i).get_node() for i in range(2))
            integers, zero = (subtract.input_value(i).get_node().input_value(0).get_node() for i in range(2))
            values = (unpacked(integers) - unpacked(zero)) * scale.data.astype(np.float32)
            found[integers.get_friendly_name().removeprefix("self.model.")] = values.reshape(len(values), -1)
    return found


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_adapter_is_trained_on_the_weights_of_the_ir(weight_format: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build_causal("llama", num_hidden_layers=1, hidden_size=64, intermediate_size=96).to(dtype)
    batch = dict(build_tokenizer()(TEXTS, padding=True, return_tensors="pt"))
    settings = {"weight_format": weight_format, "compression": WeightCompression(), "example_batches": [batch]}
    export_openvino(model, build_tokenizer(), tmp_path / "ir", **settings)
    expected = ir_weights(tmp_path / "ir")
    paths = list(base_linears(Blueprint.of(model)))
    assert len(paths) == 7
    to_integers(model, paths, weight_format)
    for path in paths:
        np.testing.assert_allclose(model.get_submodule(path).weight, expected[f"{path}.weight"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_rounding_is_small_and_the_sum_of_a_constant_row_exact(weight_format: str) -> None:
    linear = build_linear()
    linear.weight[0], linear.weight[1] = 0.0, 0.25
    found = IntegerLinear(linear, weight_format).weight
    levels = 2 ** int(weight_format[-1]) - 1
    groups = linear.weight.unflatten(1, (-1, 256 if weight_format == "int8" else 128))
    step = (groups.amax(-1, keepdim=True).clamp(min=0) - groups.amin(-1, keepdim=True).clamp(max=0)) / levels
    error = (found.view_as(groups) - groups).abs()
    assert (error <= step * (0.5 + levels * 2**-11) + 1e-7).all()  # half a step, and what float16 scales lose
    assert not found[0].count_nonzero()
    torch.testing.assert_close(found[1], linear.weight[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_and_teaches_as_a_linear_layer_of_the_rounded_weights(
    weight_format: str, bias: bool, dtype: torch.dtype
) -> None:
    linear = build_linear(bias=bias)
    layer = IntegerLinear(linear, weight_format)
    weight = layer.weight
    layer.to(dtype)
    assert torch.equal(layer.weight, weight)
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = layer(found)
    reference = F.linear(expected, weight.to(dtype), linear.bias)
    torch.testing.assert_close(y, reference)
    for each in (y, reference):
        each.square().sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_a_step_keeps_no_weights_in_floating_point() -> None:
    layer = IntegerLinear(build_linear(1024, 1024, bias=False), "int4")
    size = sum(buffer.numel() * buffer.element_size() for buffer in layer.buffers())
    assert size <= 0.53 * 1024**2  # half a byte a weight, and 3 bytes a group of 128
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(4, 1024).requires_grad_()).square().sum()
    assert sum(tensor.numel() for tensor in kept) <= 4 * 1024


def test_rows_that_no_group_divides_are_int8() -> None:
    assert IntegerLinear(build_linear(96), "int4").bits == 4
    assert IntegerLinear(build_linear(48), "int4").bits == 8


def test_a_matrix_that_is_held_as_inputs_by_outputs_is_refused() -> None:
    adapters = Adapters(("c_attn",), rank=4, transposed=True)
    model = build_causal("gpt2", num_hidden_layers=1)
    with pytest.raises(UserError, match=r"c_attn\.base_layer is a Conv1D: integer weights are for nn.Linear only"):
        adapter_supernet(model, add_adapters(model, adapters), adapters, weight_format="int8")


def test_only_ranks_and_blocks_are_elastic_on_integers() -> None:
    adapters = Adapters(("q_proj", "v_proj"), rank=4)
    model = build_causal("llama", num_hidden_layers=2)
    supernet = adapter_supernet(model, add_adapters(model, adapters), adapters, weight_format="int8")
    dims = {key.dim for key in supernet.blueprint.elastic if not supernet.blueprint.is_block(key)}
    assert dims == {"self_attn.q_proj.rank", "self_attn.v_proj.rank"}
    with pytest.raises(UserError, match=r"dimension ffn\[0\] is not elastic"), supernet.activate({Key("ffn", 0): 8}):
        pass
    ids = {"input_ids": torch.arange(6)[None]}
    with torch.no_grad():
        full = model(**ids).logits
        with supernet.activate({Key("ffn_block", 0): 0}):
            assert not torch.equal(model(**ids).logits, full)
