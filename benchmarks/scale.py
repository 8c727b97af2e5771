"""What a site costs in a round where there are 10, 100 and 1,000 of them, all in one process.

Each site is simulated, with 2 training slices of 32 x 32 of one patient, and trains the tiny
study's networks (FedAvg over a star, one thread); whole runs are timed, with their journal and
checkpoints, from the end of one round to the end of the next. `ratio_100` and `ratio_1000` are
seconds per site and round over those of 10 sites, medians of runs taken in turns; `memory_gib_1000`
is the peak of the process with 1,000 sites; `private_on_disk` is the share of sites whose private
state lies in a file of its own.

    python benchmarks/scale.py [--json]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from grandrounds.core.device import peak_memory
from grandrounds.core.events import Event, RoundFinished
from grandrounds.data.simulation.simulate import Patients
from grandrounds.runs.loop import run_study as run
from grandrounds.study.file import example, read_study
from grandrounds.study.study import Study

ROUNDS = {10: 21, 100: 5, 1000: 3}  # the first of each run only warms up
TURNS = 3


def study_of(sites: int) -> Study:
    study = read_study(example("tiny"), ["method.kind=fedavg", "training.threads=1"])
    patients = Patients(train=1, validation=0, test=1)
    roster = [replace(study.site[n % 4], name=f"site-{n:04d}") for n in range(sites)]
    members = tuple(replace(spec, patients=patients, slices=2) for spec in roster)
    return replace(study, site=members, rounds=ROUNDS[sites])


@dataclass
class Watch:
    """Takes the time at the end of each round, and ends the run after the last."""

    rounds: int
    ends: list[float] = field(default_factory=list[float])

    def __call__(self, event: Event) -> None:
        if isinstance(event, RoundFinished):
            self.ends.append(time.perf_counter())
            if event.round == self.rounds:
                raise KeyboardInterrupt

    @property
    def per_round(self) -> float:
        pairs = zip(self.ends, self.ends[1:], strict=False)
        return median(after - before for before, after in pairs)


def measure(sites: int) -> None:
    """Print seconds per site and round, the peak of memory, and the share of states on disk."""
    watch = Watch(ROUNDS[sites])
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(study_of(sites), Path(folder), listeners=[watch])
        except KeyboardInterrupt:
            name = f"sites/*/state/round-{watch.rounds:06d}.safetensors"
            on_disk = len(list(Path(folder).glob(name))) / sites
            print(json.dumps([watch.per_round / sites, peak_memory(), on_disk]))


def measured(sites: int) -> tuple[float, float, float]:
    command = [sys.executable, __file__, "--sites", str(sites)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, memory, on_disk = json.loads(done.stdout)
    return seconds, memory, on_disk


def main() -> None:
    parser = argparse.ArgumentParser(description="What a site costs among many.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sites", type=int, choices=ROUNDS)
    arguments = parser.parse_args()
    if arguments.sites:
        measure(arguments.sites)
        return
    turns = [{sites: measured(sites) for sites in ROUNDS} for _ in range(TURNS)]
    seconds = {sites: median(turn[sites][0] for turn in turns) for sites in ROUNDS}
    memory = {sites: max(turn[sites][1] for turn in turns) for sites in ROUNDS}
    found = {
        "ratio_100": median(turn[100][0] / turn[10][0] for turn in turns),
        "ratio_1000": median(turn[1000][0] / turn[10][0] for turn in turns),
        "memory_gib_1000": memory[1000] / 2**30,
        "private_on_disk": min(turn[1000][2] for turn in turns),
    }
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"a round of 2 slices of 32 px at each site, FedAvg, median of {TURNS} runs in turns")
    for sites in ROUNDS:
        print(
            f"{sites:5d} sites: {1000 * seconds[sites]:6.2f} ms per site and round, "
            f"peak memory {memory[sites] / 2**20:,.0f} MiB"
        )
    print(f"100 sites against 10: {found['ratio_100']:.3f}; 1,000: {found['ratio_1000']:.3f}")
    print(f"private states on disk at 1,000 sites: {found['private_on_disk']:.0%}")


if __name__ == "__main__":
    main()
