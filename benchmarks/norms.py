"""What exact statistics of the norms cost in an adversarial training step in float32.

Exact: the library's norms. Native: the same step with PyTorch's kernel for channels-last maps. In
turns of exact, native, native, exact; the ratio is the median of those of each turn. One thread,
and the processor's time, so that the ratio holds on a busy machine, too.

    python benchmarks/norms.py [--size 64]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch
from step import CODE_SIZE, Batch, Contender, our_contender, training_step

from grandrounds.models import norms


def native_step(contender: Contender, batch: Batch) -> None:
    with patch.object(norms, "sums_carelessly", return_value=False):
        training_step(contender, batch)


def seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    contender = replace(our_contender(compiled=False), dtype=torch.float32)
    image = partial(torch.rand, 1, 1, options.size, options.size)
    batch = Batch(image(), image(), torch.eye(CODE_SIZE)[:1])
    exact, native = partial(training_step, contender, batch), partial(native_step, contender, batch)
    turns = [
        [seconds(step) for step in (exact, native, native, exact)] for _ in range(options.turns + 1)
    ]
    ratios = [(first + last) / (second + third) for first, second, third, last in turns[1:]]
    print(f"exact takes {statistics.median(ratios):.3f} times as long")


if __name__ == "__main__":
    main()
