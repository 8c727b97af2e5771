"""What several worker processes gain over one process with the same cores.

Compared, in turns in one run: rounds of 8 sites (the demo's networks and images, 4 steps of 4
slices at each site) in this process with two threads, in this process with one thread, and in two
workers with one thread each. `gain` is the median, over the turns, of the first arm's time over the
third's; `gain_1_thread` the same of the second's.

    python benchmarks/workers.py [--json]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

from grandrounds.core.device import deterministic
from grandrounds.core.state import save_state
from grandrounds.core.weights import digest
from grandrounds.data.simulation.simulate import Patients
from grandrounds.runs.build import build_federation, distribute
from grandrounds.runs.costs import plan_run
from grandrounds.runs.listeners import SilentListener
from grandrounds.runs.site_data import open_sites
from grandrounds.study.file import example, read_study
from grandrounds.study.study import Study

SITES, PATIENTS, SLICES = 8, 4, 4
TURNS = 5  # counted; one before them only warms up
ARMS = {"1 process, 2 threads": (1, 2), "1 process, 1 thread": (1, 1), "2 workers": (2, 1)}


def study_of(threads: int) -> Study:
    study = read_study(example("demo"))
    patients = Patients(train=PATIENTS, validation=0, test=1)
    roster = [replace(study.site[n % 4], name=f"site-{n:02d}") for n in range(SITES)]
    members = tuple(replace(spec, patients=patients, slices=SLICES) for spec in roster)
    training = replace(study.training, epochs=1, threads=threads)
    return replace(study, site=members, training=training)


@contextmanager
def rounds_of(
    folder: Path, processes: int, threads: int
) -> Generator[Callable[[], str], None, None]:
    """Give a function that plays the next round, and the digest that it comes to."""
    study, listener = study_of(threads), SilentListener()
    machine = study.training.machine(processes=processes)
    built = build_federation(plan_run(study), open_sites(study, ()), folder, machine, listener)
    with distribute(built, study, (), folder, listener, processes=processes) as federation:
        states = [federation.start]

        def one_round() -> str:
            with deterministic(machine):
                outcome = federation.topology.round(states[-1], federation.sites, federation.method)
                save_state(folder, outcome.state)
            states[:] = [outcome.state]
            return digest(outcome.state.weights)

        yield one_round


def measured() -> dict[str, list[float]]:
    """The seconds of each arm's rounds, turn by turn; equal threads must give equal digests."""
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arms = {n: stack.enter_context(rounds_of(folder / n, *arm)) for n, arm in ARMS.items()}
        for turn in range(TURNS + 1):
            digests: list[str] = []
            for name, one_round in arms.items():
                started = time.perf_counter()
                digests.append(one_round())
                if turn:
                    seconds[name].append(time.perf_counter() - started)
            assert digests[1] == digests[2], "two workers came to other numbers than one process"
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="What several worker processes gain.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    two_threads, one_thread, workers = measured().values()
    found = {
        "gain": median(a / b for a, b in zip(two_threads, workers, strict=True)),
        "gain_1_thread": median(a / b for a, b in zip(one_thread, workers, strict=True)),
    }
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"a round of {SITES} sites (64 px, the demo's networks), median of {TURNS} turns")
    for name, seconds in zip(ARMS, (two_threads, one_thread, workers), strict=True):
        print(f"{name:22s} {median(seconds):6.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")
    print(f"2 workers against 1 process with 2 threads: {found['gain']:.2f} times as fast")
    print(f"2 workers against 1 process with 1 thread: {found['gain_1_thread']:.2f} times as fast")


if __name__ == "__main__":
    main()
