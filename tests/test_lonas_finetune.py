"""`lonas finetune` on a tiny BERT: the adapter of an extracted subnet trained on, merged, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import interrupted_at
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from test_lonas import logits, run, space_config, train
from transformers import AutoModelForSequenceClassification

from bootstrapnas.artefacts import read_json
from bootstrapnas.integers import round_to_integers
from bootstrapnas.pipeline.adapters import layer_linears
from lonas.cli import main
from lonas.extract import APART

STAND_STILL = ["--learning_rate", 0, "--max_steps", 1]
LEARN = ["--learning_rate", 1e-2, "--num_train_epochs", 2, "--per_device_train_batch_size", 16]


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path, tiny_task_files: Any) -> Path:
    """A super-adapter, and its smallest subnet in two parts, `min`, and merged. Read-only."""
    root = tmp_path_factory.mktemp("extracted")
    flags = ["--nncf_config", space_config(root / "config.json"), "--reorder", "l1", "--modules_to_save", "pooler"]
    train(root / "super", tiny_bert_dir, tiny_task_files, *flags)
    for name, more in (("min", ["--subnet", "min"]), ("merged", ["--subnet", "min", "--merge", "True"])):
        run("extract", "--supernet_dir", root / "super", "--output_dir", root / name, *more)
    return root


def finetune(model_dir: Path, output: Path, *more: Any) -> Path:
    run("finetune", "--model_dir", model_dir, "--output_dir", output, *more)
    return output


def merge(tuned: Path, output: Path, *more: Any) -> Path:
    run("extract", "--supernet_dir", tuned, "--merge", "True", "--output_dir", output, *more)
    return output


def plain(directory: Path) -> torch.nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(directory, trust_remote_code=True)


def test_it_starts_from_what_was_extracted(extracted: Path, tmp_path: Path) -> None:
    tuned = finetune(extracted / "min", tmp_path / "tuned", *STAND_STILL)
    before, after = (load_file(path / "adapter_model.safetensors") for path in (extracted / "min" / "adapter", tuned))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    configs = [read_json(path / "adapter_config.json") for path in (extracted / "min" / "adapter", tuned)]
    assert configs[0] == configs[1]
    merged = merge(tuned, tmp_path / "merged")
    torch.testing.assert_close(logits(plain(merged), merged), logits(plain(extracted / "merged"), merged))
    wanted, found = (read_json(path / "subnet.json") for path in (extracted / "merged", merged))
    assert found.pop("finetuned")["model"]["path"].endswith("base")
    assert found == wanted


def test_it_trains_the_adapter_and_the_head_alone(extracted: Path, tmp_path: Path, capsys: Any) -> None:
    tuned = finetune(extracted / "min", tmp_path / "tuned", *LEARN)
    before, after = (load_file(path / "adapter_model.safetensors") for path in (extracted / "min" / "adapter", tuned))
    assert not any(torch.equal(after[name], tensor) for name, tensor in before.items())
    stock = AutoPeftModelForSequenceClassification.from_pretrained(tuned, trust_remote_code=True)
    merged = merge(tuned, tmp_path / "merged")
    torch.testing.assert_close(logits(plain(merged), merged), logits(stock, tuned), rtol=1e-4, atol=1e-5)
    costs = read_json(merged / "subnet.json")["costs"]
    assert costs["params"] == sum(p.numel() for p in plain(merged).parameters())
    assert "fine-tuned on the task" in (merged / "README.md").read_text()
    run("evaluate", "--model_dir", merged)
    told = capsys.readouterr().out
    assert f'"accuracy": {round(read_json(tuned / "eval_results.json")["accuracy"], 6)}' in told


def test_a_teacher_of_another_size(extracted: Path, tmp_path: Path) -> None:
    run("extract", "--supernet_dir", extracted / "super", "--subnet", "max", "--merge", "True",
        "--output_dir", tmp_path / "teacher")  # fmt: skip
    taught = finetune(extracted / "min", tmp_path / "taught", *LEARN, "--kd_teacher_model", tmp_path / "teacher")
    alone = finetune(extracted / "min", tmp_path / "alone", *LEARN)
    found, other = (load_file(path / "adapter_model.safetensors") for path in (taught, alone))
    assert not any(torch.equal(found[name], tensor) for name, tensor in other.items())
    made = read_json(merge(taught, tmp_path / "merged") / "subnet.json")["finetuned"]
    assert made["teacher"]["path"].endswith("teacher")


@pytest.mark.parametrize("weight_format", ["int8", "int4"])
def test_a_base_of_integers_stays_one(
    weight_format: str, tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: Any
) -> None:
    """It computes with the integers that the super-adapter was trained on, and so does what it is merged to."""
    flags = ["--nncf_config", space_config(tmp_path / "c.json", ranks_only=True), "--base_weight_format", weight_format]
    directory = train(tmp_path / "super", tiny_bert_dir, tiny_task_files, *flags)
    min_of = ["--supernet_dir", directory, "--subnet", "min"]
    run("extract", *min_of, "--output_dir", tmp_path / "parts")
    run("extract", *min_of, "--merge", "True", "--output_dir", tmp_path / "wanted")
    tuned = finetune(tmp_path / "parts", tmp_path / "tuned", *STAND_STILL)
    found = merge(tuned, tmp_path / "found")
    torch.testing.assert_close(logits(plain(found), found), logits(plain(tmp_path / "wanted"), found))
    rounded = PeftModel.from_pretrained(plain(tmp_path / "parts" / "base"), tuned)
    assert not torch.equal(logits(rounded, found), logits(plain(found), found)), "of the base as it was"
    learnt = finetune(tmp_path / "parts", tmp_path / "learnt", *LEARN)
    merged = merge(learnt, tmp_path / "merged")
    base = plain(tmp_path / "parts" / "base")
    round_to_integers(base, layer_linears(base), weight_format)
    stock = PeftModel.from_pretrained(base, learnt)
    torch.testing.assert_close(logits(plain(merged), merged), logits(stock, merged), rtol=1e-4, atol=1e-5)


def test_an_interrupted_one_ends_with_the_same_tensors(extracted: Path, tmp_path: Path, capsys: Any) -> None:
    flags = [*LEARN, "--save_strategy", "steps", "--save_steps", 4, "--lora_dropout", 0.2]
    whole = finetune(extracted / "min", tmp_path / "whole", *flags)
    with interrupted_at(6), pytest.raises(AssertionError, match="130"):
        finetune(extracted / "min", tmp_path / "cut", *flags)
    cut = finetune(extracted / "min", tmp_path / "cut", *flags)
    assert "finetune: resuming from checkpoint-4" in capsys.readouterr().err
    found, wanted = (load_file(directory / "adapter_model.safetensors") for directory in (cut, whole))
    assert [key for key, tensor in wanted.items() if not torch.equal(found[key], tensor)] == []


def test_what_an_earlier_version_extracted(extracted: Path, tmp_path: Path, capsys: Any) -> None:
    """It did not write how the base was trained."""
    old = shutil.copytree(extracted / "min", tmp_path / "old")
    known = read_json(old / "subnet.json")
    (old / "subnet.json").write_text(json.dumps({name: known[name] for name in known if name not in APART}))
    header = read_json(old / "stage.json")
    header["files"]["subnet.json"] = (old / "subnet.json").stat().st_size
    (old / "stage.json").write_text(json.dumps(header))
    assert main(["finetune", "--model_dir", str(old), "--output_dir", str(tmp_path / "new")]) == 2
    assert "old does not say what its base was trained in: extract it again" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_mistakes(extracted: Path, tmp_path: Path, capsys: Any) -> None:
    tuned = finetune(extracted / "min", tmp_path / "tuned", *STAND_STILL)
    out = ["--output_dir", tmp_path / "new"]
    for arguments, message in (
        (["finetune", "--model_dir", extracted / "merged", *out], "is one model without an adapter: eftnas finetune"),
        (["finetune", "--model_dir", extracted / "super", *out], "is the output of the stage train, not of extract"),
        (["extract", "--supernet_dir", tuned, *out], "--merge True adds it to the base's weights"),
        (["extract", "--supernet_dir", tuned, "--subnet", "min", "--merge", "True", *out], "which has no subnets"),
        (["extract", "--supernet_dir", tuned, "--search_dir", "s", "--merge", "True", *out], "--search_dir s: "),
        (["eval", "--supernet_dir", tuned], "not of train; lonas extract --merge True makes one model"),
        (
            ["extract", "--supernet_dir", tuned, "--merge", "True", *out, "--model_name_or_path",
             extracted / "merged"],
            "is not the base model that the adapter in",
        ),
    ):  # fmt: skip
        assert main([str(part) for part in arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert message in line
        assert not (tmp_path / "new").exists()
