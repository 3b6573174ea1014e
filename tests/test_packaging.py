"""What users install: the wheel's contents, install.sh's refusals, and the fixtures that all other tests stand on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import SIGNALS, TaskFiles

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification

ROOT = Path(__file__).resolve().parent.parent
ENGINE_AND_PIPELINES = ("bootstrapnas", "eftnas", "lonas", "plm_nas", "mos")
PACKAGES = [name for name in ENGINE_AND_PIPELINES if (ROOT / name / "__init__.py").is_file()]


def test_wheel_holds_every_module_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    wanted = {path.relative_to(source).as_posix() for path in source.rglob("*.py")} - {"setup.py"}
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip_wheel, "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    assert names == wanted | {"bootstrapnas/py.typed"}
    assert licences
    assert "License-Expression: Apache-2.0" in metadata


def test_every_package_is_under_the_import_contracts() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert sorted(settings["tool"]["importlinter"]["root_packages"]) == sorted(PACKAGES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vnev", "x"], "unknown argument --vnev"),
        (["--venv"], "--venv needs a value"),
        (["--torch-index", "--dev"], "--torch-index needs a value"),
        (["--venv", "{occupied}"], "is no virtual environment"),
    ],
)
def test_install_refuses_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    arguments = [argument.format(occupied=tmp_path) for argument in arguments]
    result = subprocess.run(["bash", str(ROOT / "install.sh"), *arguments], capture_output=True, text=True)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_install_without_a_python_says_so_in_one_line(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "ls"):
        (tools / name).symlink_to(shutil.which(name) or name)
    command = [str(tools / "bash"), str(ROOT / "install.sh"), "--venv", str(tmp_path / "venv")]
    result = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tools)})
    assert result.returncode == 1
    assert "no Python 3.11 or newer found" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


def test_install_takes_torch_from_the_index_that_is_named(tmp_path: Path) -> None:
    """Whatever build of torch an environment has, all of which have one version; unless told otherwise it stays."""
    python, log = tmp_path / "venv" / "bin" / "python", tmp_path / "log"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/usr/bin/env bash\necho "$*" >>{log}\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_INDEX_URL"}
    found = []
    for index in ("", "https://a", "https://a", "", "https://b", ""):
        log.write_text("")
        command = ["bash", str(ROOT / "install.sh"), "--venv", str(tmp_path / "venv"), "--no-quickstart"]
        subprocess.run([*command, *(["--torch-index", index] if index else [])], check=True, env=environment)
        calls = [line.split() for line in log.read_text().splitlines() if " torch==" in line]
        found.append([call[call.index("install") + 1 : -1] for call in calls])
    replaced = ["--no-deps", "--force-reinstall", "--index-url"]
    assert found == [[["--no-deps"]], [[*replaced, "https://a"]], [], [], [[*replaced, "https://b"]], []]


def test_tiny_bert_loads_from_its_directory_and_reads_the_tiny_task(
    tiny_bert: BertForSequenceClassification, tiny_bert_dir: Path, tiny_task_files: TaskFiles
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir).eval()
    rows = [json.loads(line) for line in tiny_task_files.train.read_text().splitlines()]
    assert {row["label"] for row in rows} == set(SIGNALS.values())
    batch = tokenizer([row["text"] for row in rows[:3]], padding=True, return_tensors="pt")
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == rows[0]["text"]
    assert tokenizer.unk_token_id not in batch["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, tiny_bert(**batch).logits)


def test_commands_send_no_telemetry(tmp_path: Path) -> None:
    script = (
        "from eftnas.cli import main; assert main(['evaluate', '--model_dir', 'nowhere']) == 2\n"
        "from openvino.tools.ovc import convert_impl, utils; from nncf.telemetry.wrapper import telemetry\n"
        "print(convert_impl.tm.__name__, utils.tm.__name__, type(telemetry).__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["openvino.tools.ovc.telemetry_stub"] * 2 + ["MagicMock"]  # nncf's stub
