"""What the engine says when it is used wrongly: one line that names the place and, where it can, the mend."""

from __future__ import annotations

import copy
import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import ROWS, TOY, ToyConfig, ToyModel
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

from bootstrapnas import artefacts
from bootstrapnas.artefacts import open_stage, read_stage
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Dim, Key, Labels
from bootstrapnas.errors import UserError
from bootstrapnas.extraction import load_model
from bootstrapnas.families import FAMILIES, Family
from bootstrapnas.families.bert import BERT
from bootstrapnas.space import Gene, SearchSpace
from bootstrapnas.supernet import Supernet


def message(action: Callable[[], object]) -> str:
    """Return the one line of the UserError that `action` raises."""
    with pytest.raises(UserError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


# -- labels ------------------------------------------------------------------------------------------------------------


def toy_with(**layer: str) -> Family:
    """Return the toy family with other labels in its layers; an empty text takes a label away."""
    labels = {**TOY.layer, **{name.replace("__", "."): Labels(text) for name, text in layer.items()}}
    return replace(TOY, layer={name: label for name, label in labels.items() if label.axes})


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            toy_with(up__bias=""),
            "family 'toy', ToyModel: no axis labels for parameter 'layers.0.up.bias' of shape (10,)",
        ),
        (
            toy_with(up__bias="hidden"),
            "family 'toy', ToyModel: axis 0 of 'layers.0.up.bias' is labelled 'hidden', which is 12, "
            "but the tensor has 10",
        ),
        (
            toy_with(qkv__weight="head hd + head hd, hidden"),
            "family 'toy', ToyModel: axis 0 of 'layers.0.qkv.weight' is labelled 'head[0] hd + head[0] hd', "
            "which is 24, but the tensor has 36",
        ),
        (toy_with(up__weight="ffn"), "family 'toy', ToyModel: 'layers.0.up.weight' has 2 axes, its labels 1"),
        (toy_with(up__bias="fnn"), "family 'toy': 'layers.0.up.bias' is labelled with an unknown dimension 'fnn'"),
        (
            toy_with(gate__bias="ffn"),
            "family 'toy', ToyModel: the model has no parameter 'layers.0.gate.bias', which the labels name",
        ),
    ],
    ids=["missing", "product", "fused product", "axes", "dimension", "surplus"],
)
def test_wrong_labels(family: Family, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", family)
    assert message(lambda: Supernet(ToyModel(ToyConfig()))) == expected


def test_unknown_family() -> None:
    config = BertConfig()
    config.model_type = "brt"
    text = message(lambda: Blueprint(config, "BertModel"))
    assert text.startswith("no axis labels for model type 'brt' (known: bert, ")
    assert "; did you mean 'bert'?" in text


def test_unknown_architecture() -> None:
    assert message(lambda: Blueprint(BertConfig(), "BertForQuestionAnswer")) == (
        "no axis labels for 'BertForQuestionAnswer' in family 'bert' (known: BertForMaskedLM, BertForMultipleChoice, "
        "BertForQuestionAnswering, BertForSequenceClassification, BertForTokenClassification, BertModel); "
        "did you mean 'BertForQuestionAnswering'?"
    )


def test_an_elastic_dimension_needs_modules_with_an_elastic_form(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(nn.Linear):
        pass

    monkeypatch.setitem(FAMILIES, "toy", TOY)
    model = ToyModel(ToyConfig())
    model.layers[1].down = Scaled(10, 12)
    before = [type(module) for module in model.modules()]
    text = message(lambda: Supernet(model))
    assert text == "layers.1.down is a Scaled, which has no elastic form; declare its dims not elastic"
    assert [type(module) for module in model.modules()] == before


def test_one_supernet_a_model() -> None:
    model = ROWS[0].build()
    Supernet(model)
    assert message(lambda: Supernet(model)) == (
        "bert.encoder.layer.0.attention.self.query is elastic already: a model can be part of one supernet only"
    )


# -- subnets and spaces ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    return Supernet(ROWS[0].build())


WRONG_SIZES = [
    (Key("fnn", 1), 3, "the model has no dimension fnn[1]; did you mean 'ffn[1]'?"),
    (Key("ffn", 3), 3, "the model has no dimension ffn[3]; did you mean 'ffn[2]'?"),
    (Key("ffn"), 3, "the model has no dimension ffn"),
    (Key("hidden"), 16, "dimension hidden is not elastic in family 'bert'"),
    (Key("ffn", 0), 0, "size 0 of ffn[0] is not an integer between 1 and 24"),
    (Key("ffn", 0), 25, "size 25 of ffn[0] is not an integer between 1 and 24"),
    (Key("head", 0), 2.0, "size 2.0 of head[0] is not an integer between 1 and 4"),
    (Key("mha_block", 0), 2, "size 2 of mha_block[0] is not an integer between 0 and 1"),
    (Key("ffn_block", 0), -1, "size -1 of ffn_block[0] is not an integer between 0 and 1"),
]


@pytest.mark.parametrize(("key", "size", "expected"), WRONG_SIZES, ids=[text for *_, text in WRONG_SIZES])
def test_impossible_sizes(supernet: Supernet, key: Key, size: int, expected: str) -> None:
    def activate() -> None:
        with supernet.activate({key: size}):
            pass

    found = {
        message(activate),
        message(lambda: supernet.extract({key: size})),
        message(lambda: SearchSpace((Gene((key,), (size,)),)).check(supernet.blueprint)),
    }
    assert len(found) == 1
    assert found.pop().startswith(expected)
    assert supernet.active == {}


def test_wrong_orders_change_nothing(supernet: Supernet) -> None:
    before = copy.deepcopy(supernet.model.state_dict())
    good = {Key("ffn", 0): torch.arange(24).flip(0)}
    for bad, expected in [
        ({Key("ffn", 1): torch.arange(24) // 2}, "the order of ffn[1] is not a permutation of its 24 units"),
        ({Key("ffn", 1): torch.arange(23)}, "the order of ffn[1] is not a permutation of its 24 units"),
        ({Key("haed", 1): torch.arange(4)}, "the model has no dimension haed[1]; did you mean 'head[1]'?"),
    ]:
        assert message(lambda bad=bad: supernet.reorder({**good, **bad})) == expected
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.model.state_dict().items())


FFN, HEAD = Key("ffn", 0), Key("head", 0)
SPACE = SearchSpace((Gene((FFN,), (24, 8)), Gene((HEAD,), (4, 2))))


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (lambda: Gene((FFN,), (8, 24)), "choices of ffn[0] must descend without repeats, got [8, 24]"),
        (lambda: Gene((FFN,), (8, 8)), "choices of ffn[0] must descend without repeats, got [8, 8]"),
        (lambda: Gene((FFN,), ()), "a gene needs keys and choices, got (Key(dim='ffn', layer=0),) and ()"),
        (
            lambda: SearchSpace((Gene((FFN,), (8,)), Gene((HEAD, FFN), (4,)))),
            "the search space chooses ffn[0] twice",
        ),
        (lambda: SPACE.subnet((0,)), "a genome of this space has 2 genes, not 1"),
        (lambda: SPACE.subnet((0, 2)), "gene 2 of head[0] is not an index into its 2 choices"),
        (lambda: SPACE.subnet((-1, 0)), "gene -1 of ffn[0] is not an index into its 2 choices"),
        (lambda: SPACE.genome({Key("ffn", 1): 8}), "the search space has no gene for ffn[1]"),
        (lambda: SPACE.genome({FFN: 9}), "ffn[0] = 9 is not in the search space, which has [24, 8]"),
        (lambda: SPACE.limited(0), "width_indicator must be -1 or at least 1, not 0"),
    ],
)
def test_wrong_spaces(action: Callable[[], object], expected: str) -> None:
    assert message(action) == expected


def test_unknown_module(supernet: Supernet) -> None:
    path = "bert.encoder.layer.0.intermediate.desne"
    assert message(lambda: supernet.blueprint.keys_of_module(path)) == (
        f"the model has no labelled module {path!r}; did you mean 'bert.encoder.layer.0.intermediate.dense'?"
    )


def test_a_dimension_without_labels_has_no_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BertConfig(num_hidden_layers=1)
    monkeypatch.setitem(FAMILIES, "bert", replace(BERT, dims=(*BERT.dims, Dim("rank", lambda config: 8))))
    blueprint = Blueprint(config, "BertModel")
    assert message(lambda: blueprint.channels_per_unit(Key("rank", 0))) == (
        "rank[0] occurs in no label of family 'bert'"
    )


@pytest.mark.parametrize("kind", ["missing", "not a model", "corrupt weights"])
def test_load_model_of_what_is_none(kind: str, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    if kind == "not a model":
        directory.mkdir()
    elif kind == "corrupt weights":
        ROWS[0].build().save_pretrained(directory)
        weights = directory / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    text = message(lambda: load_model(str(directory), AutoModelForSequenceClassification))
    if kind == "not a model":
        assert text == f"{directory} is no model directory: it has no config.json"
    else:
        assert text.startswith(f"cannot load a model from {str(directory)!r}: ")


# -- artefacts ---------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    artefacts.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        artefacts.write_json(path, {"new": object()})

    def write_half() -> None:
        with artefacts.replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert artefacts.read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]
    with path.open() as reader:
        artefacts.write_json(path, {"new": 2})
        assert json.load(reader) == {"old": 1}  # a new file took the name; nobody sees half of it
    assert artefacts.read_json(path) == {"new": 2}
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


@pytest.mark.parametrize(
    ("error", "free", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 0, "No space left on device"),
        (OSError(errno.EACCES, "Permission denied"), 0, "Permission denied"),
        (RuntimeError("basic_ios::clear: iostream error"), 0, "No space left on device"),  # OpenVINO
        (RuntimeError("clear: iostream error"), 7_000_000, "clear: iostream error; 7 MB are free there"),
        (RuntimeError("unexpected pos 12032\nframe #0"), 1 << 30, "unexpected pos 12032"),  # torch
        (Exception("No space left (os error 28)"), 1 << 30, "No space left (os error 28)"),  # tokenizers
        (TypeError("a mistake of this program"), 0, None),
    ],
)  # fmt: skip
def test_what_a_library_could_not_write_is_told(
    error: Exception, free: int, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    path = tmp_path / "below" / "file"

    def write() -> None:
        with artefacts.writing(path):
            raise error

    if told is None:
        with pytest.raises(TypeError):
            write()
    else:
        assert message(write) == f"cannot write {path}: {told}"


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failed_write_leaves_the_old_directory(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with artefacts.replacing_directory(path) as temporary:
        (temporary / "old").touch()

    def write_half() -> None:
        with artefacts.replacing_directory(path) as temporary:
            (temporary / "new").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (os.listdir(tmp_path), os.listdir(path)) == (["model"], ["old"])
    with artefacts.replacing_directory(path) as temporary:
        (temporary / "new").touch()
    assert (os.listdir(tmp_path), os.listdir(path)) == (["model"], ["new"])


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert message(lambda: artefacts.read_json(path)) == f"{path} does not exist"
    path.write_text('{\n"a": }')
    assert message(lambda: artefacts.read_json(path)) == f"{path} is corrupt: not JSON at line 2: Expecting value"
    path.write_bytes(b"\xff\xfe")
    assert message(lambda: artefacts.read_json(path)).startswith(f"cannot read {path}: ")
    for write in (artefacts.write_text, artefacts.write_json):
        assert message(lambda write=write: write(path / "b", "")).startswith(f"cannot write {path / 'b'}: ")
    with pytest.raises(UserError, match="cannot write"), artefacts.replacing_directory(path / "b"):
        pass


def test_tensors(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(2, dtype=torch.bfloat16).requires_grad_()}
    about = {"criterion": 'größe "\n'}
    artefacts.save_tensors(path, tensors, about)
    found, metadata = artefacts.load_tensors(path)
    assert metadata == {"format": artefacts.FORMAT, **about}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in found)
    whole = path.read_bytes()
    for _ in range(8):  # safetensors writes metadata in any order
        artefacts.save_tensors(path, tensors, about)
        assert path.read_bytes() == whole
    for length in (0, 5, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert message(lambda: artefacts.load_tensors(path)).startswith(f"{path} is corrupt: ")
    artefacts.save_tensors(path, {}, {"format": 99})
    assert message(lambda: artefacts.load_tensors(path)) == (
        f"{path} has format 99; this version reads up to {artefacts.FORMAT}: update bootstrapnas"
    )
    assert message(lambda: artefacts.load_tensors(tmp_path / "none")) == f"{tmp_path / 'none'} does not exist"


def test_a_stage_from_start_to_end(tmp_path: Path) -> None:
    source, out = tmp_path / "input.json", tmp_path / "deep" / "out"
    source.write_text("1")
    inputs = {"model": "bert-base-uncased", "config": source, "teacher": None}
    stage = open_stage(out, "importance", {"seed": 1, "path": out}, inputs)
    assert (stage.finished, stage.resuming) == (False, False)
    assert "unfinished: run its importance stage again" in message(lambda: read_stage(out, "importance"))
    again = open_stage(out, "importance", {"seed": 1, "path": out}, inputs)
    assert (again.finished, again.resuming) == (False, True)
    (out / "scores").write_text("12345")
    again.complete(accuracy=0.5)
    done = open_stage(out, "importance", {"seed": 1, "path": out}, inputs)
    assert (done.finished, done.resuming, done.result) == (True, False, {"accuracy": 0.5})
    header = read_stage(out, "other", "importance")
    assert header["inputs"] == {
        "model": {"id": "bert-base-uncased"},
        "config": {"path": str(source), "digest": artefacts.digest(source)},
    }
    assert header["files"] == {"scores": 5}
    assert header["versions"]["torch"] == torch.__version__
    fresh = open_stage(out, "importance", {"seed": 2}, inputs, overwrite=True)
    assert (fresh.finished, fresh.resuming) == (False, False)
    assert os.listdir(out) == ["stage.json"]


@pytest.mark.parametrize("name", [".", "link"])
def test_a_stage_is_replaced_where_its_directory_cannot_be(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory, a link to another disk; where a disk is mounted it is the same."""
    out, others = tmp_path / "out", tmp_path / "others"
    open_stage(out, "search", {"seed": 1}, {})
    for path in (out / "checkpoint-1", others):
        path.mkdir(exist_ok=True)
        (path / "state").touch()
    (out / "data").symlink_to(others)
    (tmp_path / "link").symlink_to(out)
    monkeypatch.chdir(out if name == "." else tmp_path)
    open_stage(name, "search", {"seed": 2}, {}, overwrite=True).complete()
    assert os.listdir(out) == ["stage.json"]
    assert read_stage(out, "search")["settings"] == {"seed": 2}
    assert (tmp_path / "link").is_symlink()
    assert (others / "state").exists()


def test_a_stage_that_cannot_be_deleted_whole_is_still_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    stage = open_stage(out, "search", {}, {})
    (out / "zzz").mkdir()
    stage.complete()

    def busy(path: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    monkeypatch.setattr("shutil.rmtree", busy)
    assert message(lambda: open_stage(out, "search", {"seed": 2}, {}, overwrite=True)) == (
        f"cannot delete what {out} holds: {out / 'zzz'}: {os.strerror(errno.EBUSY)}"
    )
    assert read_stage(out, "search")["settings"] == {}


def test_a_stage_refuses_what_it_did_not_make(tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "input"
    source.write_text("1")
    open_stage(out, "search", {"seed": 1}, {"supernet": source}).complete()
    advice = "choose another --output_dir or pass --overwrite_output_dir"
    assert message(lambda: open_stage(out, "search", {"seed": 2}, {"supernet": source})) == (
        f"output_dir {out} holds another run (seed: 1 there, 2 here); {advice}"
    )
    assert message(lambda: open_stage(out, "extract", {"seed": 1}, {"supernet": source})) == (
        f"output_dir {out} holds another run (made by the stage search, not extract); {advice}"
    )
    many = message(lambda: open_stage(out, "search", {"a": 1, "b": 2, "c": 3, "seed": 1}, {}))
    assert many.endswith(f"c: None there, 3 here and 1 more); {advice}")
    settings = {"task": {"task_name": "mrpc", "metric": "f1"}, "seed": 1}
    open_stage(tmp_path / "tuned", "search", settings, {}).complete()
    settings["task"] = {"task_name": "mrpc", "metric": "accuracy"}
    assert message(lambda: open_stage(tmp_path / "tuned", "search", settings, {})) == (
        f"output_dir {tmp_path / 'tuned'} holds another run (task.metric: 'f1' there, 'accuracy' here); {advice}"
    )
    old = artefacts.digest(source)
    source.write_text("2")
    assert message(lambda: open_stage(out, "search", {"seed": 1}, {"supernet": source})) == (
        f"output_dir {out} holds another run (supernet: {old!r} there, {artefacts.digest(source)!r} here); {advice}"
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for overwrite in (False, True):
        assert message(lambda o=overwrite: open_stage(tmp_path / "mine", "search", {}, {}, overwrite=o)) == (
            f"output_dir {tmp_path / 'mine'} is not empty and was not made by this program; choose another"
        )
    assert (tmp_path / "mine" / "thesis.tex").exists()
    assert message(lambda: open_stage(source, "search", {}, {})) == f"output_dir {source} is a file"
    assert message(lambda: open_stage(source / "x", "search", {}, {})) == (
        f"cannot write output_dir {source / 'x'}: Not a directory"
    )


OTHER_RUN = """
import sys
from bootstrapnas.artefacts import open_stage
stage = open_stage(sys.argv[1], "search", {}, {})
print("open", flush=True)
sys.stdin.read(1)
stage.complete()
print("complete", flush=True)
sys.stdin.read(1)
"""


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("overwrite", [False, True])
def test_two_runs_at_once_do_not_share_a_directory(killed: bool, overwrite: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", OTHER_RUN, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        before = (out / "stage.json").read_text()
        busy = f"another run works in {out}: wait until it has ended, or choose another"
        for settings in ({}, {"seed": 2}):
            told = message(lambda settings=settings: open_stage(out, "search", settings, {}, overwrite=overwrite))
            assert told == busy
        assert (out / "stage.json").read_text() == before
        if killed:
            other.kill()
            other.wait()
        else:
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "complete\n"
        assert open_stage(out, "search", {}, {}, overwrite=overwrite).finished == (not killed and not overwrite)
        other.kill()


def test_a_stage_holds_its_directory_until_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def is_held() -> bool:
        file = os.open(out, os.O_RDONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    stage = open_stage(out, "search", {}, {})
    assert is_held()
    open_stage(out, "search", {}, {})  # the same process may, and resumes
    assert is_held()
    shutil.rmtree(out)
    stage = open_stage(out, "search", {}, {})
    assert is_held()
    stage.complete()
    assert not is_held()
    assert open_stage(out, "search", {}, {}).finished
    message(lambda: open_stage(out, "search", {"seed": 2}, {}))
    assert not is_held()
    with artefacts.holding(out), artefacts.holding(tmp_path / "deep" / "other"):
        assert is_held()
    assert not is_held()
    assert not (tmp_path / "deep" / "other").exists()


def test_a_file_system_without_locks_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(artefacts.fcntl, "flock", flock)
    monkeypatch.setattr(artefacts, "_unlocked", set())
    for name in ("first", "second"):
        open_stage(tmp_path / name, "search", {}, {}).complete()
        assert read_stage(tmp_path / name, "search")
    assert capsys.readouterr().err == (
        f"warning: the file system of {tmp_path / 'first'} locks no directories (No locks available): take care that "
        "no two runs write the same one at once\n"
    )


def test_a_damaged_stage(tmp_path: Path) -> None:
    out = tmp_path / "out"
    stage = open_stage(out, "search", {}, {})
    (out / "log.jsonl").write_text("12345")
    stage.complete()
    (out / "log.jsonl").write_text("123")
    expected = f"{out} is damaged: log.jsonl has 3 bytes, not 5; make it again with --overwrite_output_dir"
    assert message(lambda: read_stage(out, "search")) == expected
    assert message(lambda: open_stage(out, "search", {}, {})) == expected
    (out / "log.jsonl").unlink()
    assert message(lambda: read_stage(out, "search")).startswith(f"{out} is damaged: log.jsonl is missing")
    header = json.loads((out / "stage.json").read_text())
    for text, expected in [
        (json.dumps({**header, "format": 2}), "has format 2; this version reads up to 1: update bootstrapnas"),
        ("{}", "is corrupt: it has no 'stage'"),
        ("[]", "is corrupt: not a JSON object"),
        ('{"stage"', "is corrupt: not JSON at line 1: Expecting ':' delimiter"),
    ]:
        (out / "stage.json").write_text(text)
        for read in (lambda: read_stage(out, "search"), lambda: open_stage(out, "search", {}, {})):
            assert message(read) == f"{out / 'stage.json'} {expected}"


def test_reading_what_is_no_stage(tmp_path: Path) -> None:
    assert message(lambda: read_stage(tmp_path / "none", "search")) == (
        f"{tmp_path / 'none'} does not exist or is not a directory"
    )
    assert message(lambda: read_stage(tmp_path, "search", "extract")) == (
        f"{tmp_path} is not the output of the stage search or extract: it has no stage.json"
    )
    open_stage(tmp_path / "out", "importance", {}, {}).complete()
    assert re.fullmatch(
        r".*out is the output of the stage importance, not of search or extract",
        message(lambda: read_stage(tmp_path / "out", "search", "extract")),
    )
