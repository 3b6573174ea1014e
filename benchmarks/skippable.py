"""Supernets that can skip half-blocks, of real tasks: what benchmarks/latency_search.py searches.

python benchmarks/skippable.py --data_dir DIR --work_dir DIR --tasks stsb,cola --seeds 0

A column has a teacher as benchmarks/quality.py makes it, and a supernet that learns from it as there, of another space:
every layer keeps all, three, two or one quarter of its heads, and so of its FFN channels, and that half of the
half-blocks may be skipped without which, each alone, the teacher's outputs on held-out rows change least. Of the flags
that quality.py has too, those about searches, sizes and fine-tuning change nothing here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from columns import add_run, obey, places, read_protocol
from quality import LENGTH, Protocol, SubnetColumn

from bootstrapnas.dims import Key
from bootstrapnas.distillation import divergence
from bootstrapnas.nncf_config import NodeNames, config_with_space, one_stage_config, write_config
from bootstrapnas.pipeline.data import Rows
from bootstrapnas.pipeline.models import load_for_task, load_tokenizer, outputs_of
from bootstrapnas.progress import notice
from bootstrapnas.space import SearchSpace
from bootstrapnas.supernet import Supernet

QUARTERS = (4, 3, 2, 1)


class SkippableColumn(SubnetColumn):
    """A teacher and its supernet."""

    name = "skippable"

    def make(self) -> None:
        """Run the stages that have not finished yet."""
        self.make_teacher()
        space = self.directory / "space.json"
        if not space.is_file():
            self.write_space(space)
        self.train_supernet(space, self.make_importance())

    def write_space(self, path: Path) -> None:
        """Write the config of the space."""
        supernet = Supernet(load_for_task(str(self.teacher), self.spec).eval())
        blueprint = supernet.blueprint
        harm = self.harm(supernet)
        skippable = sorted(harm, key=lambda key: harm[key])[: len(harm) // 2]
        notice(f"{self.name}: {self.task} may skip {', '.join(map(str, skippable))}")
        widths = [key for key in blueprint.elastic if not blueprint.is_block(key)]
        space = SearchSpace.build(
            blueprint,
            [(key, [blueprint.full[key] * share // len(QUARTERS) for share in QUARTERS]) for key in widths]
            + [(key, (1, 0)) for key in skippable],
        )
        config = one_stage_config(["width", "depth"], LENGTH, {"algorithm": "NSGA2"})
        write_config(path, config_with_space(config, blueprint, NodeNames.of(supernet.model), space))

    def harm(self, supernet: Supernet) -> dict[Key, float]:
        """Return how far the outputs without each half-block are from those of the whole model, on held-out rows.

        In nats, of values as a mean squared error (`divergence`).
        """
        blueprint, rows = supernet.blueprint, Rows(self.spec, load_tokenizer(str(self.teacher)))
        batches = rows.batches("validation", tail=True)
        whole = outputs_of(supernet.model, rows, batches)
        found = {}
        for key in blueprint.elastic:
            if blueprint.is_block(key) and not blueprint.is_whole_layer(key):
                with supernet.activate({key: 0}):
                    without = outputs_of(supernet.model, rows, batches)
                found[key] = divergence(self.spec.kind.outputs, whole, without)
        return found


def run(arguments: argparse.Namespace) -> None:
    """Make what the columns lack."""
    protocol = read_protocol(arguments, Protocol)
    for place in places(arguments):
        SkippableColumn(protocol, place).make()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run(parser, Protocol, tasks="stsb,cola", seeds="0")
    return obey("skippable", parser.parse_args(argv), run)


if __name__ == "__main__":
    sys.exit(main())
