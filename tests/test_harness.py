"""Measuring by lm-evaluation-harness: what is handed to it, what comes back, and what is said where it is missing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from causal_models import build_causal, build_tokenizer
from command_line import eftnas

from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.pipeline.harness import harness_tasks, measure_by_harness
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import TaskSpec, build_task_spec

MISSING = importlib.util.find_spec("lm_eval") is None


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny causal language model with its tokenizer and task. Read-only."""
    directory = tmp_path_factory.mktemp("causal")
    build_causal("llama").save_pretrained(directory / "model")
    build_tokenizer().save_pretrained(directory / "model")
    rows = directory / "rows.json"
    rows.write_text(json.dumps([{"instruction": "go", "output": "went"}] * 8))
    build_task_spec("sft", train_file=rows).save(directory / "model" / "task.json")
    return directory / "model"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An lm_eval that takes note of what it is given; it knows two tasks, the data of one of which are out of reach."""
    noted: dict[str, Any] = {}

    def wrap(**given: Any) -> dict[str, Any]:
        noted.update(given)
        ids = torch.arange(1, 9)[None]
        with torch.no_grad():
            noted["logits"] = given["pretrained"](input_ids=ids).logits
        return given

    def evaluate(model: Any, **given: Any) -> dict[str, Any]:
        noted.update(given)
        if "far" in given["tasks"]:
            raise ConnectionError("Couldn't reach 'far' on the Hub\nmore")
        return {"results": {"near": {"alias": "near", "acc,none": 0.5, "acc_stderr,none": 0.1}}}

    parts = {
        "lm_eval": {},
        "lm_eval.tasks": {"TaskManager": lambda: SimpleNamespace(all_tasks=["near", "far"])},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": wrap},
        "lm_eval.evaluator": {"simple_evaluate": evaluate},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content, __spec__=importlib.util.spec_from_loader(name, None), __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    return noted


@pytest.mark.skipif(not MISSING, reason="lm_eval is installed")
def test_a_missing_package_is_told_with_the_extra(model_dir: Path) -> None:
    outcome = eftnas("evaluate", model_dir=model_dir, lm_eval="hellaswag")
    assert outcome.status == 2
    assert "--lm_eval needs lm-evaluation-harness: pip install 'bootstrapnas[lm_eval]'" in outcome.err


def test_the_command_prints_what_the_harness_says(model_dir: Path, stand_in: dict[str, Any], tmp_path: Path) -> None:
    outcome = eftnas("evaluate", model_dir=model_dir, lm_eval="near", max_eval_samples=3, eval_batch_size=2)
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out) == {"near": {"acc,none": 0.5, "acc_stderr,none": 0.1}}
    assert {name: stand_in[name] for name in ("tasks", "limit", "batch_size", "log_samples")} == {
        "tasks": ["near"], "limit": 3, "batch_size": 2, "log_samples": False,
    }  # fmt: skip
    for flags, message in (
        (
            {"lm_eval": "nearr"},
            "--lm_eval: 'nearr' is neither one of lm_eval's 2 tasks nor a file; did you mean 'near'?",
        ),
        ({"lm_eval": ","}, "--lm_eval names no task"),
        ({"lm_eval": "near,far"}, "--lm_eval near,far: Couldn't reach 'far' on the Hub (most tasks need the hub"),
        ({"lm_eval": "near", "predict": tmp_path / "p"}, "--lm_eval measures a --model_dir, and writes no predictions"),
    ):
        outcome = eftnas("evaluate", model_dir=model_dir, **flags)
        assert outcome.status == 2
        assert message in outcome.err
    spec = TaskSpec("files", ("text",), ("a", "b"), "single_label_classification", "accuracy", 8)
    with pytest.raises(
        UserError, match="--lm_eval measures causal language models, but the model is one of task files"
    ):
        harness_tasks("near", spec)


def test_the_active_subnet_is_what_is_measured(stand_in: dict[str, Any]) -> None:
    supernet = Supernet(build_causal("llama"))
    subnet = {Key("ffn", 0): 16, Key("kv", 1): 1, Key("mha_block", 2): 0}
    with supernet.activate(subnet):
        measure_by_harness(supernet.model, build_tokenizer(), ["near"], batch_size=2)
    with torch.no_grad():
        wanted = supernet.extract(subnet)(input_ids=torch.arange(1, 9)[None]).logits
    torch.testing.assert_close(stand_in["logits"], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(MISSING, reason="lm_eval, an optional package, is not installed")
@pytest.mark.filterwarnings("ignore")
def test_the_harness_itself_measures_by_a_task_on_disk(model_dir: Path, tmp_path: Path) -> None:
    """Multiple choice on rows of a local file: the accuracy is that of the likelihoods."""
    rows = [{"q": "the red lamp", "choices": [" turns", " a cat"], "gold": index % 2} for index in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "local_choice", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}, "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "gold", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (tmp_path / "local_choice.yaml").write_text(json.dumps(task))
    outcome = eftnas("evaluate", model_dir=model_dir, lm_eval=tmp_path / "local_choice.yaml", eval_batch_size=2)
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out[outcome.out.index("{") :])["local_choice"]["acc,none"] == 0.5
    outcome = eftnas("evaluate", model_dir=model_dir, lm_eval="hellaswagg")
    assert "did you mean 'hellaswag'" in outcome.err
