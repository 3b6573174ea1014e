"""OpenVINO latency of several models side by side, as ratios to the first.

python benchmarks/latency.py runs/quickstart/ir/full runs/quickstart/ir/half ... [--batch 1] [--length 64]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import write_table

from bootstrapnas.export import available_precisions, measure_latency, speed_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ir", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    directories = {path.name: path for path in arguments.ir}
    rows = []
    for precision in available_precisions():
        found = measure_latency(
            directories,
            batch=arguments.batch,
            length=arguments.length,
            precision=precision,
            repeats=arguments.repeats,
        )
        first = found[arguments.ir[0].name]
        for name, latency in found.items():
            size = (directories[name] / "openvino_model.bin").stat().st_size / 1e6
            figures = [f"{size:.1f}", f"{latency.median_ms:.2f}", f"{latency.p90_ms:.2f}"]
            rows.append([precision, name, *figures, f"{speed_up(first, latency):.2f}"])
    write_table(
        arguments.output / "latency.md",
        "OpenVINO latency of subnets",
        ["precision", "model", "weights (MB)", "median (ms)", "p90 (ms)", f"speed-up over {arguments.ir[0].name}"],
        rows,
        f"Batch {arguments.batch}, {arguments.length} tokens, LATENCY hint, {arguments.repeats} interleaved runs; the "
        "speed-up is the median over turns.",
    )


if __name__ == "__main__":
    main()
