"""What the README and the guides say is what the code does."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

import bootstrapnas

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification

ROOT = Path(__file__).parents[1]
GUIDES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
OUR_FILES = re.compile(r"`((?:bootstrapnas|eftnas|tests|docs|benchmarks|nncf_configs|running_commands)/[^`*{]+)`")


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(path: Path, program: str = "eftnas") -> Iterator[list[str]]:
    """Yield the words of every command of a guide that runs a program."""
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == [program]:
                yield words[1:]


# -- README ------------------------------------------------------------------------------------------------------------


def test_the_example_finds_and_extracts_a_subnet(
    tiny_bert: BertForSequenceClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    from bootstrapnas.costs import count_macs
    from bootstrapnas.search import pareto_front

    generator = torch.Generator().manual_seed(0)

    def batch() -> dict[str, torch.Tensor]:
        """Return rows whose label is the one of the words 5, 6, 7 that they hold."""
        labels = torch.randint(3, (16,), generator=generator)
        ids = torch.randint(10, 40, (16, 12), generator=generator)
        ids[:, 1:6] = 5 + labels[:, None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    (code,) = blocks(ROOT / "README.md", "python")
    code, count = re.subn("num_evals=200, population=20", "num_evals=24, population=8", code)
    code, faster = re.subn("lr=5e-5", "lr=2e-3", code)  # a model that was never trained
    assert count == faster == 1
    monkeypatch.chdir(tmp_path)
    validation = [batch() for _ in range(8)]
    before = {name: p.detach().clone() for name, p in tiny_bert.named_parameters()}
    names: dict[str, Any] = {"model": tiny_bert, "train": [batch() for _ in range(20)], "validation": validation}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # dropout
        exec(compile(code, "README.md", "exec"), names)  # the example itself

    found, small, best = names["found"], names["small"], names["best"]
    supernet, space = names["supernet"], names["space"]
    assert all(not torch.equal(p, before[name]) for name, p in tiny_bert.named_parameters() if "layer" in name)
    assert len(found.candidates) == 24
    values = [candidate.values for candidate in found.front]
    assert values
    assert pareto_front(values, found.objectives) == list(range(len(values)))
    assert max(entry["accuracy"] for entry in values) > 0.5  # one in three is chance
    # The extracted model is smaller, costs what was counted, scores what the search saw, and loads from its directory.
    subnet = space.subnet(best.genome)
    assert best.values["macs"] <= 0.5 * names["full"] == 0.5 * count_macs(supernet.blueprint, length=128)
    assert small.num_parameters() == supernet.count(subnet, length=128).params < tiny_bert.num_parameters()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small", trust_remote_code=True).eval()
    with torch.inference_mode(), supernet.activate(subnet):
        logits = torch.cat([loaded(**rows).logits for rows in validation])
        torch.testing.assert_close(logits, torch.cat([tiny_bert(**rows).logits for rows in validation]))
    accuracy = (logits.argmax(-1) == torch.cat([rows["labels"] for rows in validation])).float().mean().item()
    assert accuracy == pytest.approx(best.values["accuracy"])


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_commands_have_the_flags_that_guides_pass(path: Path) -> None:
    from bootstrapnas.cli import STAGES
    from bootstrapnas.pipeline.cli import parse
    from eftnas.commands import COMMANDS as EFTNAS
    from lonas.commands import COMMANDS as LONAS

    assert path.name != "README.md" or (list(commands(path)) and list(commands(path, "lonas")))
    for program, known in (("eftnas", EFTNAS), ("lonas", LONAS), ("bootstrapnas", STAGES)):
        for name, *arguments in commands(path, program):
            module, first = known[name].load(), known[name].first
            if first and not arguments[0].startswith("--"):
                arguments = [f"--{first}", *arguments]
            parse(f"{program} {name}", "", module.GROUPS, arguments)


def test_the_stages_hand_over_what_they_write() -> None:
    """A path that a stage of the README reads was written by a stage before it, or is in the repository."""
    written: set[str] = set()
    for _, *arguments in commands(ROOT / "README.md"):
        flags = dict(zip(arguments[::2], arguments[1::2], strict=True))
        for flag, value in flags.items():
            if flag not in ("--output_dir", "--target_config") and "/" in value:
                assert value in written or (ROOT / value).exists() or "recipe" in value, (flag, value)
        written |= {flags[flag] for flag in ("--output_dir", "--target_config") if flag in flags}


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_files_that_guides_name_exist(path: Path) -> None:
    text = re.sub(r"<!--.*?-->|^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
    for name in OUR_FILES.findall(text):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_the_table_of_nncf_keys_is_current() -> None:
    """If this fails: python docs/nncf_keys.py."""
    page = (ROOT / "docs" / "nncf_config.md").read_text(encoding="utf-8")
    assert runpy.run_path(str(ROOT / "docs" / "nncf_keys.py"))["updated"](page) == page


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "images").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_well_formed_and_used(path: Path) -> None:
    from xml.etree import ElementTree

    assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert any(path.name in guide.read_text(encoding="utf-8") for guide in GUIDES)


# -- public names ------------------------------------------------------------------------------------------------------


def test_public_names_are_their_modules_own() -> None:
    for name in bootstrapnas.__all__:
        value = getattr(bootstrapnas, name)
        assert not isinstance(value, ModuleType), f"the module {name} hides the public name"
        home = getattr(value, "__module__", "bootstrapnas")
        assert home.startswith("bootstrapnas"), name
        assert name in dir(bootstrapnas)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(bootstrapnas.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is not None
    }
    assert seen == {name: f"bootstrapnas.{module}" for name, module in bootstrapnas._HOMES.items()}


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, bootstrapnas; assert bootstrapnas.Key and bootstrapnas.SearchSpace and bootstrapnas.count_macs;"
        "print(*sorted({'torch', 'transformers', 'numpy', 'openvino'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == ""


def test_an_unknown_name_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'bootstrapnas' has no attribute 'Supernt'"):
        bootstrapnas.Supernt  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Supernt'"):
        exec("from bootstrapnas import Supernt")


def test_the_version_is_that_of_the_build() -> None:
    assert f'version="{bootstrapnas.__version__}"' in (ROOT / "setup.py").read_text(encoding="utf-8")
