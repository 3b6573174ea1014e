"""A base in half precision stays in it, wherever a super-adapter goes: no copy of it is ever in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_llama import TARGETS, lonas, write_model, write_rows
from transformers import AutoModelForCausalLM, PreTrainedModel

import bootstrapnas.evaluation as evaluation
import bootstrapnas.pipeline.models as models
from bootstrapnas.artefacts import read_json
from bootstrapnas.families.adapted import Adapters
from bootstrapnas.integers import IntegerLinear
from bootstrapnas.pipeline.data import inherited_task
from bootstrapnas.pipeline.supernets import (
    SUPER_ADAPTER_FILE,
    SuperAdapter,
    evaluation_dtypes,
    load_supernet,
    read_super_adapter,
)

CPU = torch.device("cpu")
HALF, FULL = torch.bfloat16, torch.float32
FLAGS = f"--lora_r 8 {TARGETS} --max_seq_length 128"
DATA = "--task_name commonsense --dataset_path train.json --validation_file val.json --evaluate_by score"
INTEGERS = {"plain": "", "int4": "--base_weight_format int4"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a base in bfloat16 and super-adapters trained on it as it is, also the working directory."""
    root = tmp_path_factory.mktemp("world")
    with chdir(root):
        write_model("base", dtype=HALF)
        write_rows("train.json", 8)
        write_rows("val.json", 4)
        lonas(f"search-space --model_name_or_path base --ranks 8,4 --ffn_shares 1 --target_config space.json {FLAGS}")
        for name, integers in INTEGERS.items():
            lonas(f"train --model_name_or_path base {DATA} --nncf_config space.json --base_dtype bfloat16 {integers} "
                  f"{FLAGS} --max_steps 2 --learning_rate 0.1 --output_dir {name}")  # fmt: skip
        yield root


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.dtype | None, set[torch.dtype]]]:
    """Of every model that is loaded: the dtype that it is loaded in, by order and in fact."""
    found = []
    load = models.load_model

    def load_model(source: str, auto_class: Any, dtype: torch.dtype | None = None, **settings: Any) -> PreTrainedModel:
        model = load(source, auto_class, dtype, **settings)
        found.append((dtype, {parameter.dtype for parameter in model.parameters()}))
        return model

    monkeypatch.setattr(models, "load_model", load_model)
    return found


@pytest.mark.parametrize(
    ("trained", "precision", "fast", "base", "adapters"),
    [
        (None, None, True, "float32", "float32"),
        (None, "auto", False, "float32", "float32"),
        (None, "auto", True, "bfloat16", "bfloat16"),
        ("bfloat16", None, True, "bfloat16", "float32"),
        ("bfloat16", "auto", False, "bfloat16", "float32"),
        ("bfloat16", "auto", True, "bfloat16", "bfloat16"),
        ("bfloat16", "float32", True, "float32", "float32"),
        ("float32", "bfloat16", False, "bfloat16", "bfloat16"),
        ("float16", "auto", False, "float16", "float32"),
    ],
)
def test_what_an_evaluation_computes_in(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trained: str | None,
    precision: str | None,
    fast: bool,
    base: str,
    adapters: str,
) -> None:
    about: dict[str, Any] = {"base": "x", "adapters": {"targets": ["query"], "rank": 4}, "weight_format": None}
    if trained is not None:
        about["base_dtype"] = trained
    (tmp_path / SUPER_ADAPTER_FILE).write_text(json.dumps(about))
    monkeypatch.setattr(evaluation, "fast_bfloat16", lambda device: fast)
    assert read_super_adapter(tmp_path) == SuperAdapter("x", Adapters(("query",), 4), None, trained or "float32")
    expected = tuple(getattr(torch, name) for name in (base, adapters))
    assert evaluation_dtypes(str(tmp_path), precision, CPU) == expected


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize(("precision", "adapters"), [(None, FULL), ("bfloat16", HALF)])
def test_the_base_is_loaded_once_in_the_dtype_it_is_evaluated_in(
    world: Path, loaded: list[Any], name: str, precision: str | None, adapters: torch.dtype
) -> None:
    model = load_supernet(name, inherited_task(name), *evaluation_dtypes(name, precision, CPU))[0].model
    assert loaded == [(HALF if name == "plain" else None, {HALF})]
    found = {"lora_" in name: set[torch.dtype]() for name, _ in model.named_parameters()}
    for parameter_name, parameter in model.named_parameters():
        found["lora_" in parameter_name].add(parameter.dtype)
    assert found == {False: {HALF}, True: {adapters}}
    assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} == {FULL}  # rotary positions
    assert sum(isinstance(module, IntegerLinear) for module in model.modules()) == (14 if name == "int4" else 0)


@pytest.mark.parametrize("name", INTEGERS)
def test_no_command_loads_a_base_in_another_dtype(
    world: Path, loaded: list[Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(evaluation, "fast_bfloat16", lambda device: False)
    expected = read_json(f"{name}/eval_results.json")
    for subnet in ("max", "min"):  # the very numbers of training
        found = json.loads(lonas(f"eval --supernet_dir {name} --subnet {subnet}"))
        assert found["accuracy"] == expected[f"accuracy_{subnet}"]
    lonas(f"search --supernet_dir {name} --num_evals 3 --population 2 --output_dir {name}_search")
    for merge in (False, True):
        lonas(f"extract --supernet_dir {name} --subnet min --merge {merge} --output_dir {name}_{merge}")
    assert all(dtypes == {HALF} and dtype in (HALF, None) for dtype, dtypes in loaded)

    base = load_file("base/model.safetensors")
    kept = load_file(f"{name}_False/base/model.safetensors")
    assert all(torch.equal(kept[key], tensor) and kept[key].dtype == HALF for key, tensor in base.items())
    lonas(f"extract --supernet_dir {name} --subnet min --merge True --merged_dtype float32 --output_dir {name}_float")
    rounded_once(f"{name}_True", f"{name}_float", HALF)
    supernet, _ = load_supernet(name, inherited_task(name))
    ids = torch.arange(2, 22).view(2, 10)
    for merged, tolerance in ((f"{name}_float", 1e-4), (f"{name}_True", 2e-2)):
        model = AutoModelForCausalLM.from_pretrained(merged, dtype=FULL)
        with torch.no_grad(), supernet.activate(supernet.space.subnet(supernet.space.min_genome)):
            wanted = supernet.model.eval()(ids).logits
            torch.testing.assert_close(model(ids).logits, wanted, rtol=tolerance, atol=tolerance * wanted.abs().max())


def rounded_once(directory: str, exact: str, dtype: torch.dtype) -> None:
    """Assert that the weights of a merged model are those of another one, rounded to a dtype."""
    found, wanted = load_file(f"{directory}/model.safetensors"), load_file(f"{exact}/model.safetensors")
    assert {tensor.dtype for tensor in wanted.values()} == {FULL}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], tensor.to(dtype)) for key, tensor in wanted.items())
    assert not all(torch.equal(found[key].float(), tensor) for key, tensor in wanted.items())
    assert AutoModelForCausalLM.from_pretrained(directory).dtype == dtype


@pytest.mark.parametrize("name", INTEGERS)
def test_what_was_fine_tuned_is_merged_in_the_dtype_of_its_base(world: Path, tmp_path: Path, name: str) -> None:
    lonas(f"extract --supernet_dir {name} --subnet heuristic --output_dir {tmp_path}/parts")
    lonas(f"finetune --model_dir {tmp_path}/parts --max_steps 1 --learning_rate 0.1 --output_dir {tmp_path}/tuned")
    for dtype in ("float32", "float16", None):
        flag = "" if dtype is None else f"--merged_dtype {dtype}"
        lonas(f"extract --supernet_dir {tmp_path}/tuned --merge True {flag} --output_dir {tmp_path}/{dtype}")
    rounded_once(f"{tmp_path}/None", f"{tmp_path}/float32", HALF)
    rounded_once(f"{tmp_path}/float16", f"{tmp_path}/float32", torch.float16)
