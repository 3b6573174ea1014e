"""Conformance of the engine: every family and architecture, against what the labels promise."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from random import Random

import pytest
import torch
from families import (
    BATCH,
    ENCODER_ROWS,
    EXPORTED_ROWS,
    FAMILY_ROWS,
    LAYOUTS,
    LENGTH,
    ROWS,
    TIED_TOY,
    TOY,
    Row,
    TiedToyModel,
    ToyConfig,
    ToyModel,
    gradients,
    loss,
    outputs,
    random_subnet,
    rows,
    smallest,
    subnets,
    tensors,
    toy_family,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertModel, Cache, CamembertConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_linear_macs, count_macs, count_nncf_flops, count_params
from bootstrapnas.dims import Key, Subnet, subnet_from_json, subnet_to_json
from bootstrapnas.export import export_openvino
from bootstrapnas.extraction import extract, load_model, save_subnet, subnet_class
from bootstrapnas.families import FAMILIES
from bootstrapnas.importance import Block, PerDim, order_scores, orders, resolve
from bootstrapnas.importance.structured import parameter_mask
from bootstrapnas.nncf_config import NodeNames, build_space, check_config, config_with_space, read_config
from bootstrapnas.reorder import reorder
from bootstrapnas.slicing import select
from bootstrapnas.space import Gene, SearchSpace
from bootstrapnas.supernet import Supernet
from eftnas.importance import structures_of

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
every_family = pytest.mark.parametrize("row", FAMILY_ROWS, ids=lambda row: row.name)
every_attention = pytest.mark.parametrize(
    ("row", "attention"),
    [*((r, r.attention) for r in ROWS), *((r, "eager") for r in FAMILY_ROWS if r.attention != "eager")],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
few = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
ROW = ROWS[0]
SKIP_LAYERS = {Key("layer_block", layer): 0 for layer in range(3)}
SKIP_ALL = {Key(block, layer): 0 for layer in range(3) for block in ("mha_block", "ffn_block")}


@lru_cache
def supernet_of(row: Row, attention: str = "") -> Supernet:
    """Return one supernet a row; tests leave its weights alone."""
    return Supernet(row.build(attention))


def for_subnets(row: Row, blueprint: Blueprint, check: Callable[[Subnet], None]) -> None:
    """Check eight subnets of the first row of a layout, and four others of each of its other heads."""
    first = next(other for other in ROWS if (other.config_class, other.sizes) == (row.config_class, row.sizes))
    chosen = settings(few, max_examples=8 if row == first else 4, derandomize=False, database=None)
    seeded(ROWS.index(row))(chosen(given(subnets(blueprint))(check)))()


def assert_gradients_of_subnet(
    blueprint: Blueprint, subnet: Subnet, elastic: dict[str, Tensor | None], small: dict[str, Tensor | None]
) -> None:
    """Assert that a subnet's gradients are those of the extracted network, and 0 outside it."""
    assert small.keys() == {name for name, p in blueprint.parameters.items() if blueprint.exists(p, subnet)}
    for name, gradient in elastic.items():
        if gradient is None:
            assert small.get(name) is None, name
            continue
        inside = select(blueprint, name, gradient, subnet)
        torch.testing.assert_close(inside, small[name], rtol=1e-5, atol=5e-6)
        assert gradient.count_nonzero() == inside.count_nonzero(), f"{name} has a gradient outside the subnet"


# -- building and reordering -------------------------------------------------------------------------------------------


@every_attention
def test_an_elastic_model_computes_what_it_computed_before(row: Row, attention: str) -> None:
    model, batch = row.build(attention).train(), row.batch()
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    before = gradients(model, batch)
    with torch.no_grad():
        expected = model.eval()(**batch, output_hidden_states=True, output_attentions=attention == "eager")
    Supernet(model)
    with torch.no_grad():
        found = model(**batch, output_hidden_states=True, output_attentions=attention == "eager")
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert all(torch.equal(a, b) for a, b in zip(tensors(value), tensors(found[name]), strict=True)), name
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    assert {name: id(b) for name, b in model.named_buffers()} == {name: id(b) for name, b in buffers.items()}
    after = gradients(model.train(), batch)
    assert all(torch.equal(before[name], after[name]) for name in before if before[name] is not None)


@every_attention
@settings(parent=few, max_examples=3)
@given(seed=st.integers(0, 1000))
def test_reordering_changes_nothing_but_the_order(row: Row, attention: str, seed: int) -> None:
    family = supernet_of(row).blueprint.family
    model, batch = row.build(attention, **dict.fromkeys(family.dropout, 0.0)).train(), row.batch()
    blueprint = Blueprint.of(model)
    generator = torch.Generator().manual_seed(seed)
    dims = {"head", "kv", "rep", "hd", "ffn", "hidden"} - set(row.ordered)
    if blueprint.architecture == family.bare:
        dims.discard("hidden")  # the order of a base model's output
    orders = {key: torch.randperm(size, generator=generator) for key, size in blueprint.full.items() if key.dim in dims}
    for key in blueprint.full:
        if key.dim in row.ordered:
            with pytest.raises(ValueError, match="have no other order in family"):
                reorder(model, blueprint, {**orders, key: torch.arange(blueprint.full[key]).flip(0)})
    expected, old = outputs(model, batch).detach(), gradients(model, batch)
    carrier = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in carrier.named_parameters():
            parameter.copy_(torch.zeros_like(parameter) if old[name] is None else old[name])
    reorder(carrier, blueprint, orders)
    reorder(model, blueprint, orders)
    torch.testing.assert_close(outputs(model, batch), expected, rtol=0, atol=1e-5)
    new = gradients(model, batch)
    for name, moved in carrier.named_parameters():
        if new[name] is not None:
            torch.testing.assert_close(new[name], moved.detach(), rtol=1e-4, atol=1e-5)


def test_reordering_moves_units_as_told() -> None:
    model = ROW.build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    blueprint = Blueprint.of(model)
    reorder(model, blueprint, {Key("head", 1): torch.tensor([2, 0, 3, 1]), Key("ffn", 0): torch.arange(24).flip(0)})
    after = dict(model.named_parameters())
    layers = "bert.encoder.layer"
    query = before[f"{layers}.1.attention.self.query.weight"].view(4, 8, 32)
    assert torch.equal(after[f"{layers}.1.attention.self.query.weight"].view(4, 8, 32), query[[2, 0, 3, 1]])
    dense = before[f"{layers}.1.attention.output.dense.weight"].view(32, 4, 8)
    assert torch.equal(after[f"{layers}.1.attention.output.dense.weight"].view(32, 4, 8), dense[:, [2, 0, 3, 1]])
    bias = f"{layers}.0.intermediate.dense.bias"
    assert torch.equal(after[bias], before[bias].flip(0))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {p.name for key in (Key("head", 1), Key("ffn", 0)) for p, _ in blueprint.members(key)}


@every_family
def test_masking_units_is_what_reordering_and_slicing_leaves_out(row: Row) -> None:
    """Scores of blocks to units, over all parts of a fused weight: masks in place, or a prefix after reordering."""
    model, batch = row.build(), row.batch()
    blueprint = Blueprint.of(model)
    generator = torch.Generator().manual_seed(0)
    scores = {
        parameter.name: torch.rand([size // 4 for size in parameter_shape], generator=generator)
        for parameter in blueprint.parameters.values()
        if parameter.blocks and len(parameter_shape := blueprint.shape(parameter.name, {})) == 2
    }
    ranked = order_scores(blueprint, scores)
    threshold = min(float(values.max()) for values in ranked.values()) - 1e-6
    units = resolve(blueprint, scores, threshold)
    assert len(units) == len(row.units) * blueprint.num_layers
    assert any(0 < kept.sum() < len(kept) for key, kept in units.items() if key.dim == row.units[0])
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            kept = parameter_mask(blueprint, name, units)
            if kept is not None:
                parameter.mul_(kept)
    supernet = Supernet(model)
    supernet.reorder(orders(ranked))
    with torch.no_grad(), supernet.activate({key: int(kept.sum()) for key, kept in units.items()}):
        torch.testing.assert_close(outputs(model, batch), outputs(masked, batch), rtol=0, atol=1e-5)


# -- a subnet by four routes -------------------------------------------------------------------------------------------


@every_attention
def test_elastic_is_extracted(row: Row, attention: str) -> None:
    supernet, batch = supernet_of(row, attention), row.batch()

    def check(subnet: Subnet) -> None:
        small = supernet.extract(subnet)
        assert not small.training
        assert small.config._attn_implementation == attention
        supernet.model.eval()
        with supernet.activate(subnet), torch.no_grad():
            torch.testing.assert_close(outputs(supernet.model, batch), outputs(small, batch), rtol=0, atol=1e-6)
        supernet.model.train()
        with supernet.activate(subnet):
            elastic = gradients(supernet.model, batch, seed=5)
        found = gradients(small.train(), batch, seed=5)
        if type(small) is row.model_class:  # where layers are missing, the others are numbered anew
            kept = [number for number in range(3) if subnet.get(Key("layer_block", number)) != 0]
            old = {
                re.sub(r"(\b(?:layers?|h)\.)(\d)", lambda n: f"{n[1]}{kept[int(n[2])]}", name): name for name in found
            }
            found = {name: found[new] for name, new in old.items()}
        assert_gradients_of_subnet(supernet.blueprint, subnet, elastic, found)

    for_subnets(row, supernet.blueprint, check)


@every_row
def test_elastic_is_the_untouched_model_with_sliced_tensors(row: Row) -> None:
    """Skips as published: without attention its LayerNorm goes too, without the FFN the layer's last one stays."""
    supernet, batch = supernet_of(row), row.batch()

    def check(subnet: Subnet) -> None:
        original = row.build()
        for number, layer in enumerate(original.base_model.get_submodule(supernet.blueprint.family.stack)):
            if row.unit:
                row.tell(layer, supernet.blueprint.size(Key(row.unit, number), subnet))
            for block in supernet.blueprint.family.blocks:
                if subnet.get(Key(block.name, number)) == 0:
                    if block.whole_layer:
                        pair = block.stand_ins[""] != "input"
                        layer.forward = lambda x, *_, pair=pair, **__: (x, None) if pair else x
                    else:
                        row.skip(layer, block.name)
        sliced = {name: select(supernet.blueprint, name, p, subnet) for name, p in original.named_parameters()}
        for name, module in original.named_modules():
            if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
                module.normalized_shape = tuple(sliced[f"{name}.weight"].shape)
            elif isinstance(module, Conv1D):
                module.nf = len(sliced[f"{name}.bias"])
        with torch.no_grad():
            found = torch.func.functional_call(original, sliced, kwargs=batch)
            supernet.model.eval()
            with supernet.activate(subnet):
                elastic = supernet.model(**batch)
        for name, value in found.items():
            wanted, ours = tensors(value), tensors(elastic[name])
            if isinstance(value, Cache):  # in other places, where layers without attention leave theirs
                wanted, ours = (sorted(kept, key=lambda kept: float(kept.sum())) for kept in (wanted, ours))
            torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-6)

    for_subnets(row, supernet.blueprint, check)


@every_row
def test_counts_are_those_of_the_extracted_model(row: Row) -> None:
    supernet = supernet_of(row, "eager")

    def check(subnet: Subnet) -> None:
        small = supernet.extract(subnet)
        costs = supernet.count(subnet, length=LENGTH)
        embedded = [p for path in row.embeddings for p in small.base_model.get_submodule(path).parameters()]
        assert costs.params == sum(p.numel() for p in small.parameters()) == small.num_parameters()
        assert costs.params_without_embeddings == costs.params - sum(p.numel() for p in embedded)
        ids = torch.ones(1, LENGTH, dtype=torch.long)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            small(input_ids=ids, attention_mask=ids)
        assert 2 * costs.macs == counter.get_total_flops()  # torch's count of every matrix product, attention's too
        linear = sum(count for op, count in counter.get_flop_counts()["Global"].items() if "bmm" not in str(op))
        assert 2 * costs.nncf_macs == linear  # eager attention multiplies in batches, nothing else does
        assert count_nncf_flops(supernet.blueprint, subnet, length=LENGTH) == linear

    for_subnets(row, supernet.blueprint, check)


def test_counts_of_bert_base_are_the_published_ones() -> None:
    from transformers import BertConfig

    blueprint = Blueprint(BertConfig(num_labels=2), "BertForSequenceClassification")
    assert count_params(blueprint) == 109_483_778
    macs = count_macs(blueprint, length=128, head=False)
    assert macs == 12 * (128 * (4 * 768 * 768 + 2 * 768 * 3072) + 2 * 128 * 128 * 768)
    skipped = {Key("mha_block", 0): 0, Key("head", 0): 3}
    assert macs - count_macs(blueprint, skipped, length=128, head=False) == 128 * 4 * 768**2 + 2 * 128**2 * 768


@every_family
@few
@given(data=st.data())
def test_subnets_of_the_same_completion_are_the_same_network(row: Row, data: st.DataObject) -> None:
    supernet, batch = supernet_of(row), row.batch()
    blueprint = supernet.blueprint
    subnet = data.draw(subnets(blueprint))
    complete = blueprint.complete(subnet)
    assert complete.keys() == set(blueprint.elastic)
    assert blueprint.complete(complete) == complete
    assert subnet_from_json(subnet_to_json(complete)) == complete
    assert supernet.count(complete, length=LENGTH) == supernet.count(subnet, length=LENGTH)
    supernet.model.eval()
    with torch.no_grad():
        with supernet.activate(subnet):
            expected = outputs(supernet.model, batch)
        with supernet.activate(complete):
            assert torch.equal(outputs(supernet.model, batch), expected)
    inside = [key for block in complete if complete[block] == 0 for key in blueprint.inside(block)]
    assert blueprint.complete({**subnet, **{key: smallest(blueprint, key) for key in inside}}) == complete
    assert {key.dim for key in blueprint.inside(Key("mha_block", 1))} == {*row.units} - {*row.ffns}
    assert {key.dim for key in blueprint.inside(Key("ffn_block", 1))} == {"ffn"}
    halves = {block.name for block in blueprint.family.blocks} - {"layer_block"}
    assert {key.dim for key in blueprint.inside(Key("layer_block", 1))} == {*row.units, *halves}


# -- on disk -----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def own_module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep transformers from copying modelling files into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", [*sys.path])
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[Row, Path]:
    """One heterogeneous subnet a row, each in a directory called ``subnet``, with its outputs."""
    directories = {}
    for row in ROWS:
        supernet = supernet_of(row)
        subnet = {**random_subnet(supernet.blueprint, seed=3), Key("mha_block", 1): 0, Key("ffn", 2): 5}
        subnet |= {Key("layer_block", layer): int(layer > 0) for layer in range(3)}
        small = supernet.extract(subnet)
        directories[row] = tmp_path_factory.mktemp(row.name) / "subnet"
        save_subnet(small, directories[row])
        with torch.no_grad():
            save_file({"outputs": outputs(small, row.batch())}, directories[row] / "outputs.st")
            save_file(row.batch(), directories[row] / "batch.st")
    return directories


@every_row
def test_saved_subnet_reloads(row: Row, saved: dict[Row, Path]) -> None:
    directory = saved[row]
    expected = load_file(directory / "outputs.st")["outputs"]
    own = load_model(str(directory), row.auto_class)
    plain = row.auto_class.from_pretrained(directory, trust_remote_code=True)
    assert type(own).__name__ == type(plain).__name__ == f"Subnet{row.name}"
    assert isinstance(own, row.model_class)
    assert isinstance(plain, row.model_class)
    for model in (own, plain):
        assert not model.training
        with torch.no_grad():
            assert torch.equal(outputs(model, row.batch()), expected)


def test_saved_subnet_reloads_where_the_project_is_unknown(saved: dict[Row, Path], tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
import torch, transformers
from safetensors.torch import load_file
torch.set_num_threads(1)
for directory, auto_class in zip(sys.argv[1::2], sys.argv[2::2]):
    model = getattr(transformers, auto_class).from_pretrained(directory, trust_remote_code=True).eval()
    found = model(**load_file(Path(directory, "batch.st")))
    names = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")
    found = torch.cat([found[name].flatten() for name in names if found.get(name) is not None])
    print(type(model).__name__, (found - load_file(Path(directory, "outputs.st"))["outputs"]).abs().max().item())
assert not [name for name in sys.modules if name.startswith("bootstrapnas")]
"""
    arguments = [word for row, directory in saved.items() for word in (str(directory), row.auto_class.__name__)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_MODULES_CACHE": str(tmp_path / "m")}
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [word for row in ROWS for word in (f"Subnet{row.name}", "0.0")]


@every_family
def test_files_shrink_with_the_subnet(row: Row, tmp_path: Path) -> None:
    supernet = supernet_of(row)
    sizes = []
    for name, subnet in (
        ("full", {}),
        ("narrow", {Key("ffn", 0): 6, Key(row.units[0], 1): 1}),
        ("empty", SKIP_ALL),
        ("none", SKIP_LAYERS),
    ):
        save_subnet(supernet.extract(subnet), tmp_path / name)
        sizes.append((tmp_path / name / "model.safetensors").stat().st_size)
        header = range(215 * len(supernet.blueprint.parameters))
        assert sizes[-1] - 4 * supernet.count(subnet, length=1).params in header
    if row.ffns == ("ffn",):
        assert sizes[0] - sizes[1] > 4 * (18 * 64 + 2 * 8 * 4 * 32)
    assert sizes[1] > sizes[2] >= sizes[3]  # post-norm layers without their halves still have a norm


@pytest.mark.parametrize("row", EXPORTED_ROWS, ids=lambda row: row.name)
def test_the_ir_has_the_products_and_weights_of_the_subnet_only(row: Row, tmp_path: Path) -> None:
    import openvino as ov

    supernet = supernet_of(row)
    blueprint = supernet.blueprint
    subnet = {key: size or 1 for key, size in random_subnet(blueprint, seed=3).items()}
    subnet |= {Key("mha_block", 0): 0, Key("ffn_block", 1): 0, Key("layer_block", 2): 0}
    export_openvino(supernet.extract(subnet), None, tmp_path / "ir", example_batches=[row.batch()])
    operations = [op.get_type_name() for op in ov.Core().read_model(tmp_path / "ir/openvino_model.xml").get_ops()]
    products = [p for p in blueprint.uses.values() if p.applied and blueprint.exists(p, subnet)]
    assert operations.count("MatMul") == len(products)
    assert operations.count("ScaledDotProductAttention") == 1  # that of layer 1
    beside = (tmp_path / "ir/openvino_model.bin").stat().st_size - 4 * supernet.count(subnet, length=1).params
    assert -100 < beside < 1_500  # constants that are no weights; nothing of what was skipped


@every_row
def test_a_subnet_that_the_config_can_express_needs_no_code(row: Row, tmp_path: Path) -> None:
    supernet, batch = supernet_of(row), row.batch()
    ffn = "ffn" in row.expressed or len(row.ffns) > 1
    widths = {Key(dim, layer): 11 for layer in range(3) for dim in row.ffns}
    small = supernet.extract(widths if ffn else {Key("layer_block", 1): 0})
    assert type(small) is row.model_class
    blueprints = [Blueprint.of(model) for model in (supernet.model, small)]
    sizes = [b.dims["ffn"].size(b.config) if ffn else b.num_layers for b in blueprints]
    assert sizes == ([supernet.blueprint.full[Key("ffn", 0)], 11] if ffn else [3, 2])
    save_subnet(small, tmp_path)
    files = {"config.json", "model.safetensors", *(["generation_config.json"] if small.can_generate() else [])}
    assert {path.name for path in tmp_path.iterdir()} == files
    again = row.auto_class.from_pretrained(tmp_path, trust_remote_code=False)
    with torch.no_grad():
        assert torch.equal(outputs(again, batch), outputs(small, batch))
    assert type(supernet.extract({})) is row.model_class
    for dim in row.units:  # a head size that follows from the number of heads is no other's
        narrow = supernet.extract({Key(dim, layer): 1 for layer in range(3)})
        assert (type(narrow) is row.model_class) == (dim in row.expressed)


@every_family
def test_without_some_layers_a_model_is_an_ordinary_smaller_one(row: Row, tmp_path: Path) -> None:
    supernet, batch = supernet_of(row), row.batch()
    ffn = "ffn" in row.expressed or len(row.ffns) > 1
    widths = {Key(dim, layer): 11 for layer in (0, 2) for dim in row.ffns if ffn}
    subnet = {**widths, Key("layer_block", 1): 0, Key(row.units[0], 1): 1}
    small = supernet.extract(subnet)
    supernet.model.eval()
    with supernet.activate(subnet), torch.no_grad():
        expected = outputs(supernet.model, batch)
    alike = isinstance(supernet.blueprint.family.num_layers, str)
    save_subnet(small, tmp_path)
    again = row.auto_class.from_pretrained(tmp_path, trust_remote_code=not alike)
    assert (type(again) is row.model_class) == (type(small) is row.model_class) == alike
    with torch.no_grad():
        torch.testing.assert_close(outputs(again, batch), expected, rtol=0, atol=1e-6)
    assert supernet.count(subnet, length=1).params == again.num_parameters()
    if alike:
        assert Blueprint.of(again).num_layers == 2
        stack = supernet.blueprint.layer_path(2, "").removesuffix("2")
        last = [name for name in supernet.blueprint.parameters if name.startswith(f"{stack}2.")]
        full = dict(supernet.model.named_parameters())
        for name in last:
            moved = again.get_parameter(name.replace(f"{stack}2.", f"{stack}1."))
            assert torch.equal(moved, select(supernet.blueprint, name, full[name], subnet))


def test_a_model_without_layers_is_none_that_a_config_describes() -> None:
    small = supernet_of(ROW).extract(SKIP_LAYERS)
    assert type(small) is not ROW.model_class
    assert count_params(supernet_of(ROW).blueprint, SKIP_LAYERS) == small.num_parameters()


@every_row
def test_the_elastic_model_saves_as_an_ordinary_one(row: Row, tmp_path: Path) -> None:
    original, batch = row.build(), row.batch()
    elastic = Supernet(row.build())
    with elastic.activate(random_subnet(elastic.blueprint)):
        elastic.model.save_pretrained(tmp_path)
    assert list(elastic.model.state_dict()) == list(original.state_dict())
    again = row.auto_class.from_pretrained(tmp_path)
    assert type(again) is row.model_class
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in original.named_parameters())
    elastic.model.load_state_dict(original.state_dict())
    with torch.no_grad():
        assert torch.equal(outputs(again, batch), outputs(elastic.model, batch))


@every_family
def test_a_subnet_built_from_its_config_alone_is_initialised(row: Row) -> None:
    supernet = supernet_of(row)
    config = supernet.extract(random_subnet(supernet.blueprint, seed=3)).config
    for _ in range(3):
        stale = [torch.full((size,), torch.nan) for size in (24, 32, 24 * 32, 32 * 32, 8 * 32)]
        del stale  # memory that an uninitialised tensor would find
        model = subnet_class(row.model_class, config)(config)
        for name, parameter in model.named_parameters():
            assert parameter.isfinite().all(), name
            assert parameter.abs().max() <= 1, name


@pytest.mark.parametrize("auto_class", [ROWS[2].auto_class, ROWS[1].auto_class], ids=lambda auto: auto.__name__)
def test_a_subnet_under_another_head(auto_class: type, saved: dict[Row, Path]) -> None:
    directory = str(saved[ROW])
    if auto_class is ROWS[1].auto_class:
        other = load_model(directory, auto_class, num_labels=2)
        own = load_model(directory, ROW.auto_class)
        assert type(other).__name__ == "SubnetBertForQuestionAnswering"
        pairs = zip(other.bert.encoder.parameters(), own.bert.encoder.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    else:
        with pytest.raises(ValueError, match="it holds a SubnetBertForSequenceClassification, which AutoModel cannot"):
            load_model(directory, auto_class)


# -- what a user may do with an elastic model --------------------------------------------------------------------------


def test_dropout_is_active_in_training_only() -> None:
    supernet, batch = supernet_of(ROW), ROW.batch()
    with supernet.activate({Key("ffn", 0): 3, Key("mha_block", 1): 0}), torch.no_grad():
        supernet.model.train()
        assert not torch.equal(outputs(supernet.model, batch), outputs(supernet.model, batch))
        supernet.model.eval()
        assert torch.equal(outputs(supernet.model, batch), outputs(supernet.model, batch))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
@every_family
def test_gradient_checkpointing_changes_no_gradient(row: Row, reentrant: bool) -> None:
    batch = row.batch()
    supernet = Supernet(row.build().train())
    supernet.model.config.use_cache = False  # as checkpointing has it: GPT-2 masks in another way with a cache
    subnet = {**random_subnet(supernet.blueprint, seed=2), Key("mha_block", 0): 1, Key("ffn_block", 2): 0}
    with supernet.activate(subnet):
        expected = gradients(supernet.model, batch)
        supernet.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        supernet.model.enable_input_require_grads()
        found = gradients(supernet.model, batch)
    assert all(found[name] is None if g is None else torch.equal(found[name], g) for name, g in expected.items())


@every_family
def test_bfloat16(row: Row, tmp_path: Path) -> None:
    supernet, batch = supernet_of(row), row.batch()
    subnet = random_subnet(supernet.blueprint, seed=4)
    small = supernet.extract(subnet)
    supernet.model.eval()
    with supernet.activate(subnet), torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = outputs(supernet.model, batch)
        torch.testing.assert_close(found, outputs(small, batch))
    assert found.isfinite().all()
    model = row.build()
    for parameter in model.parameters():  # but no buffer, as in a model that is loaded in bfloat16
        parameter.data = parameter.data.bfloat16()
    half = Supernet(model)
    extracted = half.extract(subnet)
    assert {p.dtype for p in extracted.parameters()} == {torch.bfloat16}
    save_subnet(extracted, tmp_path)
    again = load_model(str(tmp_path), row.auto_class)
    assert again.dtype == torch.bfloat16
    with half.activate(subnet), torch.no_grad():
        assert torch.equal(outputs(again, batch), outputs(extracted, batch))
        torch.testing.assert_close(outputs(half.model, batch), outputs(extracted, batch))


def train_once(supernet: Supernet, subnet: Subnet, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    with supernet.activate(subnet):
        loss(supernet.model, ROW.batch()).backward()
    optimizer.step()


def test_adamw_sees_whole_tensors() -> None:
    """Decay and momentum move what is not in the subnet, as in NNCF; a gradient alone never does."""
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    subnet = {Key("ffn", 0): 10}

    def moved(decay: float, warm_up: bool) -> tuple[Tensor, Tensor]:
        supernet = Supernet(ROW.build())
        optimizer = torch.optim.AdamW(supernet.model.parameters(), lr=1e-2, weight_decay=decay)
        if warm_up:
            train_once(supernet, {}, optimizer)
        before = supernet.model.get_parameter(name).detach().clone()
        train_once(supernet, subnet, optimizer)
        after = supernet.model.get_parameter(name).detach()
        assert not torch.equal(after[:10], before[:10])
        return before[10:], after[10:]

    before, after = moved(decay=0.0, warm_up=False)
    assert torch.equal(after, before)
    before, after = moved(decay=0.1, warm_up=False)
    torch.testing.assert_close(after, before * (1 - 1e-2 * 0.1))
    before, after = moved(decay=0.0, warm_up=True)
    assert not torch.equal(after, before)


def test_a_skipped_block_has_no_gradient_so_no_optimiser_touches_it() -> None:
    supernet = Supernet(ROW.build())
    optimizer = torch.optim.AdamW(supernet.model.parameters(), lr=1e-2, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in supernet.model.named_parameters()}
    train_once(supernet, {Key("mha_block", 0): 0}, optimizer)
    still = {name for name, p in supernet.model.named_parameters() if torch.equal(p, before[name])}
    assert still == {name for name in before if name.startswith("bert.encoder.layer.0.attention.")}


def test_frozen_parameters_stay_frozen() -> None:
    model = ROW.build()
    model.bert.embeddings.requires_grad_(False)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    supernet = Supernet(model)
    supernet.reorder({Key("ffn", 0): torch.arange(24).flip(0)})
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen
    for subnet in ({}, {Key("ffn", 0): 3}):
        small = supernet.extract(subnet)
        assert {name for name, p in small.named_parameters() if not p.requires_grad} == frozen
    model.bert.encoder.layer[1].requires_grad_(False)
    small = supernet.extract({Key("layer_block", 0): 0})
    assert not any(p.requires_grad for p in small.bert.encoder.layer[0].parameters())
    assert all(p.requires_grad for p in small.bert.encoder.layer[1].parameters())


def test_an_extracted_model_shares_nothing_with_the_supernet() -> None:
    supernet = Supernet(ROW.build())
    for subnet in ({}, {Key("ffn", 0): 3}):
        small = supernet.extract(subnet)
        tensors = [*supernet.model.parameters(), *supernet.model.buffers()]
        own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        for name, tensor in [*small.named_parameters(), *small.named_buffers()]:
            assert tensor.untyped_storage().data_ptr() not in own, name
            assert tensor.is_contiguous(), name
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, name
        assert small.config is not supernet.model.config
        assert "subnet" not in supernet.model.config.to_dict()


def test_a_deep_copy_is_a_supernet_of_its_own() -> None:
    supernet, batch = Supernet(ROW.build()), ROW.batch()
    subnet = {Key("head", 0): 1, Key("ffn_block", 1): 0}
    twin = copy.deepcopy(supernet)
    with torch.no_grad(), supernet.activate(subnet):
        small = outputs(supernet.model, batch)
        full = outputs(twin.model, batch)
        assert not torch.equal(small, full)
        with twin.activate(subnet):
            assert torch.equal(outputs(twin.model, batch), small)
    assert twin.model.get_parameter("classifier.weight") is not supernet.model.get_parameter("classifier.weight")


def test_hooks_of_modules_survive() -> None:
    model, seen = ROW.build(), []
    model.bert.encoder.layer[0].attention.register_forward_hook(lambda module, args, result: seen.append("attention"))
    model.bert.encoder.layer[0].intermediate.dense.register_forward_hook(lambda *_: seen.append("dense"))
    supernet = Supernet(model)
    with supernet.activate({Key("ffn", 0): 3}):
        outputs(model, ROW.batch())
    assert seen == ["attention", "dense"]


def test_a_subclass_of_a_known_class_is_that_class() -> None:
    class MyBert(ROW.model_class):
        pass

    model = MyBert(ROW.config_class(**{"num_labels": 3, "hidden_size": 32, "num_attention_heads": 4})).eval()
    assert type(Supernet(model).extract({})) is ROW.model_class


# -- activation --------------------------------------------------------------------------------------------------------


def test_activate_nests_and_restores() -> None:
    supernet = supernet_of(ROW)
    outer, inner = {Key("ffn", 0): 5}, {Key("head", 0): 2}
    assert supernet.active == {}
    with supernet.activate(outer) as model:
        assert model is supernet.model
        with supernet.activate(inner):
            assert supernet.active == inner
        assert supernet.active == outer
        with pytest.raises(RuntimeError, match="inside"), supernet.activate(inner):
            raise RuntimeError("inside")
        assert supernet.active == outer
        with pytest.raises(ValueError, match="25"), supernet.activate({Key("ffn", 0): 25}):
            pass
        assert supernet.active == outer
    assert supernet.active == {}


def test_the_active_subnet_is_a_copy() -> None:
    supernet, batch = supernet_of(ROW), ROW.batch()
    supernet.model.eval()
    subnet = {Key("ffn", 0): 5}
    with torch.no_grad():
        with supernet.activate(subnet):
            expected = outputs(supernet.model, batch)
        with supernet.activate(subnet):
            subnet[Key("ffn", 0)] = 1
            assert torch.equal(outputs(supernet.model, batch), expected)


# -- the search space --------------------------------------------------------------------------------------------------


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    blueprint = supernet_of(ROW).blueprint
    keys = draw(st.lists(st.sampled_from(blueprint.elastic), min_size=1, max_size=8, unique=True))
    return SearchSpace.build(
        blueprint,
        [
            (key, draw(st.lists(st.integers(smallest(blueprint, key), blueprint.full[key]), min_size=1, max_size=5)))
            for key in keys
        ],
    )


@few
@given(space=spaces(), seed=st.integers())
def test_genomes_and_subnets_are_one_to_one(space: SearchSpace, seed: int) -> None:
    genome = space.sample(Random(seed))
    assert genome == space.sample(Random(seed))
    assert all(0 <= index < count for index, count in zip(genome, space.cardinalities, strict=True))
    subnet = space.subnet(genome)
    assert space.genome(subnet) == genome
    assert space.genome({}) == space.max_genome
    assert space.num_subnets == torch.tensor(space.cardinalities).prod().item()
    largest, smallest_, middle = (space.subnet(g) for g in (space.max_genome, space.min_genome, space.heuristic_genome))
    for gene in space.genes:
        (key,) = gene.keys
        assert largest[key] == max(gene.choices)
        assert smallest_[key] == min(gene.choices)
        assert sum(size > middle[key] for size in gene.choices) <= sum(size < middle[key] for size in gene.choices)
        assert smallest_[key] <= subnet[key] <= largest[key]


@few
@given(space=spaces(), width=st.integers(1, 6))
def test_limiting_keeps_the_first_widths(space: SearchSpace, width: int) -> None:
    limited = space.limited(width)
    assert space.limited(-1) == space
    for gene, kept in zip(space.genes, limited.genes, strict=True):
        assert kept.keys == gene.keys
        assert kept.choices == (gene.choices if 0 in gene.choices else gene.choices[:width])
    assert limited.limited(width) == limited


@few
@given(space=spaces(), share=st.floats(0.3, 1.0))
def test_a_genome_within_a_budget_is_within_it_and_cannot_grow(space: SearchSpace, share: float) -> None:
    def cost(genome: tuple[int, ...]) -> float:
        return sum(space.subnet(genome).values())

    budget = share * cost(space.max_genome)
    genome = space.within(cost, budget)
    assert (genome is None) == (cost(space.min_genome) > budget)
    if genome is not None:
        assert cost(genome) <= budget
        larger = [(*genome[:i], index - 1, *genome[i + 1 :]) for i, index in enumerate(genome) if index]
        assert all(cost(other) > budget for other in larger)


def test_a_genome_within_a_budget_shrinks_all_alike() -> None:
    widths = [(Key("ffn", layer), (80, 60, 40, 20)) for layer in range(2)]
    space = SearchSpace(tuple(Gene((key,), sizes) for key, sizes in [*widths, (Key("ffn_block", 0), (1, 0))]))
    cost = lambda genome: sum(size for size in space.subnet(genome).values() if size > 1)  # noqa: E731
    assert space.within(cost, 80) == (2, 2, 0)
    assert space.within(cost, 40) == (3, 3, 0)
    assert space.within(cost, 39) is None


def test_a_gene_of_several_keys_sets_them_together() -> None:
    keys = (Key("ffn", 0), Key("ffn", 1))
    space = SearchSpace((Gene(keys, (24, 8)),))
    space.check(supernet_of(ROW).blueprint)
    assert space.subnet((1,)) == dict.fromkeys(keys, 8)
    assert space.genome(dict.fromkeys(keys, 8)) == (1,)


def test_the_heuristic_rounds_towards_larger() -> None:
    choices = [(24, 16), (24, 16, 8), (24, 16, 12, 8)]
    space = SearchSpace(tuple(Gene((Key("ffn", layer),), sizes) for layer, sizes in enumerate(choices)))
    assert space.heuristic_genome == (0, 1, 1)


# -- what BERT has not: fused projections, an elastic hidden size, tied weights ----------------------------------------


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyModel:
    monkeypatch.setitem(FAMILIES, "toy", TOY)
    torch.manual_seed(0)
    return ToyModel(ToyConfig()).eval()


IDS = torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % 20


def toy_gradients(model: PreTrainedModel) -> dict[str, Tensor | None]:
    model.zero_grad(set_to_none=True)
    model(IDS).pow(2).sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(parent=few, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fused_projection_and_elastic_hidden_size(
    layout: str, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setitem(FAMILIES, "toy", toy_family(layout))
    torch.manual_seed(0)
    toy = ToyModel(ToyConfig(**LAYOUTS[layout][1])).eval()
    model = copy.deepcopy(toy)
    before = model(IDS).detach()
    supernet = Supernet(model)
    blueprint = supernet.blueprint
    assert torch.equal(model(IDS), before)
    orders = {key: torch.randperm(size) for key, size in blueprint.full.items() if key.dim in ("hidden", "head", "ffn")}
    supernet.reorder(orders)
    torch.testing.assert_close(model(IDS), before, rtol=0, atol=1e-5)
    subnet = data.draw(subnets(blueprint))
    small = supernet.extract(subnet)
    with supernet.activate(subnet):
        torch.testing.assert_close(model(IDS), small(IDS), rtol=0, atol=1e-6)
        elastic = toy_gradients(model)
    plain = copy.deepcopy(toy)
    reorder(plain, blueprint, orders)
    for number, layer in enumerate(plain.layers):
        if subnet.get(Key("ffn_block", number)) == 0:
            layer.down.forward = lambda x: x.new_zeros(())
    sliced = {name: select(blueprint, name, p, subnet) for name, p in plain.named_parameters()}
    for module in plain.modules():
        if isinstance(module, nn.LayerNorm):
            module.normalized_shape = (blueprint.size(Key("hidden"), subnet),)
    torch.testing.assert_close(torch.func.functional_call(plain, sliced, IDS), small(IDS), rtol=0, atol=1e-6)
    assert count_params(blueprint, subnet) == sum(p.numel() for p in small.parameters())
    assert_gradients_of_subnet(blueprint, subnet, elastic, toy_gradients(small))
    assert small.embed.embedding_dim == small.norm.normalized_shape[0] == blueprint.size(Key("hidden"), subnet)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small(IDS[:1])
    flops = sum(count for op, count in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    assert 2 * count_linear_macs(blueprint, subnet, length=LENGTH) == flops


def test_layouts_of_one_size_are_told_apart_by_reordering() -> None:
    """Labels of another layout multiply to the same size, so only the function tells."""
    for right in ("concatenated", "interleaved"):
        for labelled in ("concatenated", "interleaved"):
            torch.manual_seed(0)
            model = ToyModel(ToyConfig(**LAYOUTS[right][1])).eval()
            before = model(IDS).detach()
            reorder(model, Blueprint.of(model, toy_family(labelled)), {Key("head", 0): torch.tensor([2, 0, 1])})
            assert torch.allclose(model(IDS), before, rtol=0, atol=1e-5) == (right == labelled)


def test_fused_slices_are_the_parts_of_each_projection(toy: ToyModel) -> None:
    blueprint = Blueprint.of(toy)
    bias = torch.arange(36)
    found = select(blueprint, "layers.0.qkv.bias", bias, {Key("head", 0): 2})
    assert found.tolist() == [*range(0, 8), *range(12, 20), *range(24, 32)]
    assert blueprint.shape("layers.0.qkv.weight", {Key("head", 0): 2, Key("hidden"): 5}) == (24, 5)


def test_a_prefix_slice_is_a_view() -> None:
    blueprint = supernet_of(ROW).blueprint
    weight = torch.randn(32, 32)
    name = "bert.encoder.layer.0.attention.output.dense.weight"
    assert select(blueprint, name, weight, {Key("head", 0): 2}).data_ptr() == weight.data_ptr()


def test_buffers_keep_their_type(toy: ToyModel) -> None:
    supernet = Supernet(toy.bfloat16())
    subnet = {Key("hidden"): 7}
    small = supernet.extract(subnet)
    assert small.scale.dtype == torch.bfloat16
    with supernet.activate(subnet):
        torch.testing.assert_close(toy(IDS), small(IDS))


def test_tied_weights_stay_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", TIED_TOY)
    model = TiedToyModel(ToyConfig()).eval()
    assert model.decoder.weight is model.embed.weight
    before = model(IDS).detach()
    supernet = Supernet(model)
    supernet.reorder({Key("hidden"): torch.arange(12).flip(0)})
    torch.testing.assert_close(model(IDS), before, rtol=0, atol=1e-5)
    subnet = {Key("head", 0): 1, Key("ffn", 1): 3, Key("hidden"): 7}
    small = supernet.extract(subnet)
    assert small.decoder.weight is small.embed.weight
    assert small.decoder.in_features == small.embed.embedding_dim == 7
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small(IDS[:1])
    assert 2 * count_linear_macs(supernet.blueprint, subnet, length=LENGTH) == counter.get_total_flops()
    with supernet.activate(subnet):
        torch.testing.assert_close(model(IDS), small(IDS), rtol=0, atol=1e-6)
    assert count_params(supernet.blueprint, subnet) == sum(p.numel() for p in small.parameters())


def test_a_decoder_that_the_model_names_before_the_embeddings() -> None:
    """CamemBERT registers its head first, so that ``named_parameters()`` shows their tensor as the decoder's."""
    (row,) = rows("Camembert", CamembertConfig, ["MaskedLM"])
    supernet, batch = Supernet(row.build()), row.batch()
    assert "lm_head.decoder.weight" in dict(supernet.model.named_parameters())
    subnet = random_subnet(supernet.blueprint, seed=3)
    small = supernet.extract(subnet)
    assert small.get_output_embeddings().weight is small.get_input_embeddings().weight
    assert supernet.count(subnet, length=LENGTH).params == small.num_parameters()
    with supernet.activate(subnet):
        torch.testing.assert_close(outputs(supernet.model, batch), outputs(small, batch), rtol=0, atol=1e-6)


def test_a_model_whose_weights_are_tied_by_its_config_alone_is_refused() -> None:
    row = next(row for row in ROWS if row.name == "BertForMaskedLM")
    model = row.build()
    model.cls.predictions.decoder.weight = nn.Parameter(model.cls.predictions.decoder.weight.detach().clone())
    with pytest.raises(ValueError, match=r"'cls.predictions.decoder.weight' should be the same tensor as 'bert.embedd"):
        Supernet(model)


def test_untied_weights_are_parameters_of_their_own() -> None:
    row = next(row for row in ROWS if row.name == "BertForMaskedLM")
    tied, untied = (Supernet(row.build(tie_word_embeddings=tie)) for tie in (True, False))
    for supernet in (tied, untied):
        assert supernet.count({}, length=LENGTH).params == supernet.model.num_parameters()
    assert untied.model.num_parameters() - tied.model.num_parameters() == 40 * 32 + 40
    assert untied.count({}, length=LENGTH).macs == tied.count({}, length=LENGTH).macs


def test_extraction_from_a_model_that_is_not_elastic() -> None:
    model = ROW.build()
    subnet = {Key("head", 2): 1}
    small = extract(model, Blueprint.of(model), subnet)
    with supernet_of(ROW).activate(subnet), torch.no_grad():
        supernet_of(ROW).model.eval()
        assert torch.equal(outputs(small, ROW.batch()), outputs(supernet_of(ROW).model, ROW.batch()))


def test_the_bare_model_has_no_prefix() -> None:
    blueprint = Blueprint.of(ROWS[2].build())
    assert ROWS[2].model_class is BertModel
    assert "encoder.layer.0.intermediate.dense.weight" in blueprint.parameters
    assert blueprint.keys_of_module("encoder.layer.0.intermediate.dense") == (Key("ffn", 0),)
    assert blueprint.keys_of_module("encoder.layer.2.attention.self.key") == (Key("head", 2),)
    assert blueprint.channels_per_unit(Key("head", 1)) == 8
    assert blueprint.channels_per_unit(Key("ffn", 1)) == 1


# -- the border to NNCF ------------------------------------------------------------------------------------------------

ALL_ELASTIC = {
    "bootstrapNAS": {
        "training": {
            "progressivity_of_elasticity": ["width", "depth"],
            "elasticity": {"available_elasticity_dims": ["width", "depth"]},
            "schedule": {"list_stage_descriptions": [{"train_dims": ["width", "depth"], "width_indicator": -1}]},
        }
    }
}


@every_family
def test_every_unit_and_block_has_its_words_in_an_nncf_config(row: Row) -> None:
    """What is written with NNCF's node names is read back as the same genes."""
    blueprint = Blueprint.of(row.build())
    choices = [(key, (blueprint.full[key], 0 if blueprint.is_block(key) else 1)) for key in blueprint.elastic]
    space = SearchSpace.build(blueprint, choices)
    written = config_with_space(ALL_ELASTIC, blueprint, NodeNames.of(row.build()), space)
    again = build_space(check_config(written), blueprint)
    assert set(again.genes) == set(space.genes)


@pytest.mark.parametrize("row", ENCODER_ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("template", ["base_bert", "quickstart"])
def test_the_templates_score_every_family_alike(row: Row, template: str) -> None:
    """Attention in blocks, FFN channels with a score each, all else left alone, whatever a family calls its layers."""
    config = read_config(Path(__file__).parents[1] / "nncf_configs" / "eftnas" / f"{template}.json")
    model = row.build()
    blueprint = Blueprint.of(model)
    found = structures_of(config, NodeNames.of(model))
    for parameter in blueprint.parameters.values():
        dims = [{key.dim for product in axis for key in product} for axis in parameter.axes]
        if parameter.applied and dims and {"head", *row.ffns} & set.union(*dims):
            expected = Block(32, 32) if "head" in dims[0] | dims[1] else PerDim(0 if dims[0] & {*row.ffns} else 1)
            assert found.pop(parameter.name.removesuffix(".weight")) == expected
    assert not [path for path in found if f".{blueprint.family.stack}." in f".{path}"]
