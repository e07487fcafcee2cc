"""What keeping fewer patches saves BrainTumNet: time and work of attention over all of them, a block, the network.

    python benchmarks/keep_ratio.py [--size 256] [--rounds 5] [--threads 1]

At the default width and at the finest grid of patches (4 pixels each: 4,096 at 256×256), one slice, float32, on the
CPU. Every round times each keep ratio once, in an order that turns from round to round, and a ratio is the median over
the rounds of its CPU seconds over those of keeping all patches in the same round. A training step is forward and
backward. Work is counted by torch.utils.flop_counter (two operations for a multiplication and an addition) on the meta
device, since it does not know the CPU's fused attention.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from record import record
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from braintum.config import Experiment
from braintum.models.networks.masked_transformer import BTBlock, masked_attention

RATIOS = (1.0, 0.5, 0.25, 0.125)
PATCH = 4


def parts(size: int, keep_ratio: float) -> dict[str, Callable[[], Tensor]]:
    """What is timed, by name: each call runs it on one slice and returns something to differentiate."""
    settings = {"data": {"image_size": size}, "model": {"name": "braintumnet", "keep_ratio": keep_ratio}}
    config = Experiment.from_dict(settings).model
    torch.manual_seed(0)
    network = config.build(in_channels=1, num_classes=4, num_masks=1)
    block = next(module for module in network.decoder[-1].modules() if isinstance(module, BTBlock))
    grid = (size // PATCH, size // PATCH)
    patches, width, heads = grid[0] * grid[1], block.norms[0].normalized_shape[0], block.attention.heads
    x_BTD, log_mask_BAT = torch.randn(1, patches, width), torch.randn(1, heads, patches).sigmoid().log()
    kept = math.ceil(keep_ratio * patches)
    query, key, value = torch.randn(3, 1, heads, kept, width // heads).unbind(0)
    image = torch.rand(1, 1, size, size)

    def outputs() -> Tensor:
        mask_logits, class_logits, _ = network(image)
        return mask_logits.mean() + class_logits.mean()

    return {
        "attention_over_all": lambda: masked_attention(query, key, value, log_mask_BAT[..., :kept]),
        "bt_block": lambda: block(x_BTD, grid, log_mask_BAT),
        "bt_block_training_step": lambda: block(x_BTD, grid, log_mask_BAT).mean(),
        "network": outputs,
        "network_training_step": outputs,
    }


def seconds(name: str, run: Callable[[], Tensor]) -> float:
    start = time.process_time()
    with torch.set_grad_enabled(name.endswith("training_step")):
        result = run()
    if result.requires_grad:
        result.backward()
    return time.process_time() - start


def gigaflops(size: int, keep_ratio: float, name: str) -> float:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        parts(size, keep_ratio)[name]()
    return counter.get_total_flops() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("size", 256), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    measured = {keep_ratio: parts(a.size, keep_ratio) for keep_ratio in RATIOS}
    results: dict[str, Any] = {}
    for name in measured[1.0]:
        rounds: list[dict[float, float]] = []
        for turn in range(-1, a.rounds):  # the first warms up
            order = RATIOS[turn % len(RATIOS) :] + RATIOS[: turn % len(RATIOS)]
            taken = {keep_ratio: seconds(name, measured[keep_ratio][name]) for keep_ratio in order}
            rounds += [taken] if turn >= 0 else []
        results[name] = {
            "over_keeping_all": {str(r): statistics.median(t[r] / t[1.0] for t in rounds) for r in RATIOS},
            "cpu_seconds": {str(r): statistics.median(t[r] for t in rounds) for r in RATIOS},
        }
        if not name.endswith("training_step"):
            results[name]["gigaflops"] = {str(r): gigaflops(a.size, r, name) for r in RATIOS}
    command = " ".join(["python benchmarks/keep_ratio.py", *(f"--{k} {v}" for k, v in vars(a).items())])
    record("keep_ratio", results, command)


if __name__ == "__main__":
    main()
