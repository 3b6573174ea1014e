"""What movement-sparsity training costs: its step against a plain training step, measured in one run.

python benchmarks/movement.py [--batch 32] [--length 128] [--repeats 15] [--dtype float32|bfloat16]
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from common import autocast, build_bert, interleaved, random_batch, ratio, write_table

from bootstrapnas.importance import Block, MovementSettings, PerDim, attach


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()

    plain = build_bert()
    batch = random_batch(arguments.batch, arguments.length)
    structures = {}
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear) and "encoder" in name:
            structures[name] = Block(32, 32) if ".attention." in name else PerDim(0 if ".intermediate." in name else 1)
    settings = MovementSettings(warmup_start_epoch=0.1, warmup_end_epoch=2, importance_regularization_factor=0.02)
    before, during = copy.deepcopy(plain), copy.deepcopy(plain)
    controllers = {
        "before": attach(before, structures, settings, 1000),
        "during": attach(during, structures, settings, 1000),
    }

    def stepper(model, controller=None, first=0):
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)
        count = iter(range(first, first + 10_000))

        def step() -> None:
            if controller is not None:
                controller.step(next(count))
            with autocast(arguments.dtype):
                loss = model(**batch).loss
                if controller is not None:
                    loss = loss + controller.loss()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

        return step

    times = interleaved(
        {
            "plain": stepper(plain),
            "before": stepper(before, controllers["before"], 0),
            "during": stepper(during, controllers["during"], 500),
        },
        arguments.repeats,
    )
    rows = [
        [f"movement sparsity {name} the warm-up / plain", *(f"{v:.3f}" for v in ratio(times, name, "plain")), "1.08"]
        for name in ("before", "during")
    ]
    write_table(
        arguments.output / f"movement_{arguments.dtype}.md",
        f"Cost of movement-sparsity training, {arguments.dtype}",
        ["training step", "median", "min", "max", "at most"],
        rows,
        f"BERT 6 x 384, random weights, batch {arguments.batch}, {arguments.length} tokens, AdamW, blocks of "
        f"32 x 32 in attention, one score per FFN channel, {arguments.repeats} interleaved turns; ratios turn by turn.",
    )


if __name__ == "__main__":
    main()
