"""What elasticity costs: supernet steps and forwards against plain Hugging Face, as ratios measured in one run.

python benchmarks/supernet.py [--batch 32] [--length 128] [--repeats 15] [--dtype float32|bfloat16]
                              [--shape 6x384|base] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import copy
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from common import autocast, build_bert, clock_of, interleaved, random_batch, ratio, write_table

from bootstrapnas.dims import Key
from bootstrapnas.supernet import Supernet

SHAPES = {"6x384": (6, 384), "base": (12, 768)}
"""Name -> layers, hidden size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="6x384")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()

    layers, hidden = SHAPES[arguments.shape]
    plain = build_bert(layers, hidden).to(arguments.device)
    supernet = Supernet(copy.deepcopy(plain))
    subnets = {
        "max": {},
        "half": sized(supernet, heads=6, ffn=768),
        "random": sized(supernet, heads=(9, 4, 12, 6, 8, 5), ffn=(1200, 640, 1536, 320, 896, 768)),
        "min": sized(supernet, heads=2, ffn=160),
    }
    extracted = {name: supernet.extract(subnet).train() for name, subnet in subnets.items()}
    batch = {k: v.to(arguments.device) for k, v in random_batch(arguments.batch, arguments.length).items()}
    computing = partial(autocast, arguments.dtype, arguments.device)

    def stepper(model, passes=None):
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)

        def step() -> None:
            for subnet in passes or [None]:
                with supernet.activate(subnet) if subnet is not None else nullcontext(), computing():
                    loss = model(**batch).loss
                    loss.backward()
            optimiser.step()
            optimiser.zero_grad()

        return step

    def forward(model, subnet=None):
        def run() -> None:
            model.eval()
            with (
                torch.inference_mode(),
                supernet.activate(subnet) if subnet is not None else nullcontext(),
                computing(),
            ):
                model(**batch)
            model.train()

        return run

    steps = {"plain": stepper(plain), **{f"extracted {n}": stepper(m) for n, m in extracted.items() if n != "max"}}
    steps |= {f"elastic {name}": stepper(supernet.model, [subnet]) for name, subnet in subnets.items()}
    steps["sandwich"] = stepper(supernet.model, [subnets["max"], subnets["random"], subnets["min"]])
    forwards = {"plain": forward(plain), **{f"extracted {n}": forward(m) for n, m in extracted.items() if n != "max"}}
    forwards |= {f"elastic {name}": forward(supernet.model, subnet) for name, subnet in subnets.items()}
    step_times = interleaved(steps, arguments.repeats, clock_of(arguments.device))
    forward_times = interleaved(forwards, arguments.repeats, clock_of(arguments.device))

    rows = []
    for label, times in (("training step", step_times), ("evaluation forward", forward_times)):
        for name, over, under, bound in (
            ("max subnet / plain model", "elastic max", ["plain"], "1.02"),
            ("half subnet / same model extracted", "elastic half", ["extracted half"], "1.02"),
            ("min subnet / same model extracted", "elastic min", ["extracted min"], ""),
            ("half subnet / full plain model", "elastic half", ["plain"], "0.60"),
        ):
            rows.append([label, name, *(f"{value:.3f}" for value in ratio(times, over, *under)), bound])
    sandwich = ratio(step_times, "sandwich", "plain", "extracted random", "extracted min")
    rows.append(["training step", "sandwich / sum of the three extracted", *(f"{v:.3f}" for v in sandwich), "1.03"])
    activations = []
    for _ in range(200):
        start = time.perf_counter()
        with supernet.activate(subnets["random"]):
            activations.append(1e3 * (time.perf_counter() - start))
    activations.sort()
    rows.append(["activation", "milliseconds", *(f"{activations[i]:.4f}" for i in (100, 0, 199)), "1"])
    name = "_".join(
        ["supernet", arguments.dtype, *(v for v in (arguments.shape, arguments.device) if v not in ("6x384", "cpu"))]
    )
    write_table(
        arguments.output / f"{name}.md",
        f"Cost of elasticity, {arguments.dtype}",
        ["what", "ratio", "median", "min", "max", "at most"],
        rows,
        f"BERT {layers} x {hidden} (12 heads, FFN {4 * hidden}), random weights, batch {arguments.batch}, "
        f"{arguments.length} tokens, AdamW, {arguments.repeats} interleaved turns; ratios are taken turn by turn.",
    )


def sized(supernet: Supernet, heads: int | tuple[int, ...], ffn: int | tuple[int, ...]) -> dict[Key, int]:
    """Return a subnet with the given heads and FFN channels, of 1536, per layer; several take turns."""
    blueprint = supernet.blueprint
    at = lambda value, layer: value[layer % len(value)] if isinstance(value, tuple) else value  # noqa: E731
    found = {}
    for layer in range(blueprint.num_layers):
        found[Key("head", layer)] = at(heads, layer)
        found[Key("ffn", layer)] = at(ffn, layer) * blueprint.full[Key("ffn", layer)] // 1536
    return found


if __name__ == "__main__":
    main()
