"""The model card of a directory that holds a subnet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bootstrapnas.artefacts import read_json, write_text
from bootstrapnas.costs import Costs
from bootstrapnas.extraction import SUBNET_FILE, auto_class_name
from bootstrapnas.pipeline.data import inherited_task
from bootstrapnas.report import Report, Row, build_report, model_card


def write_first_card(directory: Path, measured: Mapping[str, float], note: str) -> None:
    """Write the card of a subnet that no report has measured yet; `note` says where its metrics are from."""
    subnet = read_json(directory / SUBNET_FILE)
    rows = [Row("full", Costs(**subnet["full_costs"])), Row("subnet", Costs(**subnet["costs"]), dict(measured))]
    percent = inherited_task(str(directory)).maximise
    report = build_report(rows, title=directory.name, percent=percent, notes=[note] if measured else [])
    write_card(directory, directory.name, report)


def write_searched_card(directory: Path, values: Mapping[str, float] | None, search_dir: str | None) -> None:
    """Write the first card of a subnet; `values` are what the search in `search_dir` measured of it, if one did."""
    metric = inherited_task(str(directory)).metric
    measured = {name: value for name, value in (values or {}).items() if name == metric}
    asked = inherited_task(str(search_dir)).instructions if measured else None  # the search may have asked another way
    way = "" if asked is None else f", by --evaluate_by {asked.evaluate_by}"
    write_first_card(directory, measured, f"The metric is the search's, on the validation split{way}.")


def write_card(directory: Path, name: str, report: Report, *, ir: str | None = None) -> None:
    """Write the README.md of an extracted subnet: how it was made, a table, how to load it.

    Parameters
    ----------
    directory
        Output of this stage.
    name
        What to call the subnet.
    report
        The table.
    ir
        Path of its OpenVINO IR, relative to `directory`.
    """
    config, subnet = read_json(directory / "config.json"), read_json(directory / SUBNET_FILE)
    made = subnet["supernet"].get("path") or subnet["supernet"]["id"]
    tuned, adapted = subnet.get("finetuned"), subnet.get("super_adapter")
    trained = (
        f"An elastic supernet (`{made}`) was trained: its units are ordered by importance, so a subnet is a prefix."
    )
    if adapted:
        order = "by importance" if adapted["reordered"] else "as they were pre-trained"
        trained = (
            f"A super-adapter (`{made}`) was trained on the frozen `{adapted['base']}`, whose units are in order "
            f"{order}: a subnet is a prefix of them, and of the ranks of its adapters."
        )
    untouched = "" if tuned or adapted else "; nothing was trained after that"
    steps = [
        trained,
        f"This subnet was chosen by: {subnet['chosen_by']}.",
        f"Its part of every weight was copied{untouched}.",
    ]
    if adapted:
        steps.append("Its adapter was added to the weights.")
    if tuned:
        teacher = tuned["teacher"] and (tuned["teacher"].get("path") or tuned["teacher"]["id"])
        what, place = ("Its adapter", -1) if tuned.get("adapter") else ("It", len(steps))
        steps.insert(place, f"{what} was fine-tuned on the task{f', distilled from `{teacher}`' if teacher else ''}.")
    card = model_card(
        f"Subnet {name}",
        base_model=adapted["base"] if adapted else made,
        auto_class=auto_class_name(str(config["architectures"][0])),
        remote_code="auto_map" in config,
        steps=steps,
        ordered=not adapted or adapted["reordered"],
        sizes=subnet["sizes"],
        report=report,
        ir=ir,
    )
    write_text(directory / "README.md", card)
