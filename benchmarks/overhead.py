"""What federation costs beside the local steps themselves, in time and in memory.

Compared, in turns in one process: rounds of a federated run (broadcast, private state to and from
disk, mean, digests, checkpoint), and a bare loop of the same steps on the same batches (one model,
one optimiser for each part, nothing else). `ratio_4` and `ratio_32` are wall times of the first
over the second for 4 and 32 sites; `memory_per_site` is the growth of peak memory for each site
more, over one site's private state on disk.

    python benchmarks/overhead.py [--json]
    python benchmarks/overhead.py --network monai.networks.nets:SegResNet [--sites 4]

With `--network` the same is measured of segmentation with a network from outside, with the options
that it has by itself.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from grandrounds.core.device import deterministic, peak_memory
from grandrounds.core.seeds import seed_for
from grandrounds.core.state import save_state
from grandrounds.core.weights import digest
from grandrounds.data.simulation.simulate import Patients
from grandrounds.runs.build import build_federation, build_trainer
from grandrounds.runs.costs import plan_run
from grandrounds.runs.listeners import SilentListener
from grandrounds.runs.site_data import open_sites
from grandrounds.site.training import BatchSource, TrainingLoop
from grandrounds.study.file import example, parse_study, read_study, read_table
from grandrounds.study.site_file import SiteFile
from grandrounds.study.study import Study

REPEATS = {4: 5, 32: 2}  # counted rounds; the first of each arm only warms up
PATIENTS, SLICES = 8, 12  # to train on, at each site: 24 steps of 4 slices in one local epoch


def study_of(sites: int, network: str = "") -> Study:
    """As many sites as asked for, one local epoch of 24 steps, on slices of 64 x 64.

    The networks are the demo's; with an address of another one it segments instead.
    """
    study = segmenting(network) if network else read_study(example("demo"))
    roster = [replace(study.site[n % 4], name=f"site-{n:02d}") for n in range(sites)]
    patients = Patients(train=PATIENTS, validation=0, test=1)
    members = tuple(replace(spec, patients=patients, slices=SLICES) for spec in roster)
    return replace(study, site=members, training=replace(study.training, epochs=1))


def segmenting(network: str) -> Study:
    """The packaged study of segmentation with a network from outside."""
    table = read_table(example("segmentation"))
    table["task"] = {"kind": "segmentation", "network": network}
    return parse_study(table)


def federated(study: Study, folder: Path, files: Sequence[SiteFile] = ()) -> Callable[[], None]:
    machine = study.training.machine()
    federation = build_federation(
        plan_run(study), open_sites(study, files), folder, machine, SilentListener()
    )
    states = [federation.start]

    def one_round() -> None:
        outcome = federation.topology.round(states[-1], federation.sites, federation.method)
        state = outcome.state
        digest(state.weights)
        save_state(folder, state)
        states[:] = [state]

    return one_round


def bare(study: Study, files: Sequence[SiteFile] = ()) -> Callable[[], None]:
    plan = plan_run(study)
    task, bench = plan.task, build_trainer(plan, study.training.machine())
    bench.set_rate(study.training.learning_rate)
    examples = [task.training_examples(o.cohorts) for o in open_sites(study, files).values()]
    rounds = iter(range(1, 10**6))

    def one_round() -> None:
        number = next(rounds)
        for site, own in zip(study.site, examples, strict=True):
            seed = seed_for(study.seed, site.name, number, "batches")
            generator = torch.Generator().manual_seed(seed)
            lesson = BatchSource(task, own, study.training.batch_size, generator)
            TrainingLoop(bench, lesson).train(epochs=study.training.epochs)

    return one_round


def ratio(sites: int, network: str = "") -> tuple[float, float, float]:
    study = study_of(sites, network)
    with tempfile.TemporaryDirectory() as folder, deterministic(study.training.machine()):
        return in_turns(federated(study, Path(folder)), bare(study), REPEATS[sites])


def in_turns(
    one: Callable[[], None], other: Callable[[], None], repeats: int
) -> tuple[float, float, float]:
    """Give the median ratio of rounds in turns, and the median seconds of each."""
    seconds: list[list[float]] = [[], []]
    for turn in range(repeats + 1):
        for arm, one_round in enumerate((one, other)):
            started = time.perf_counter()
            one_round()
            if turn:
                seconds[arm].append(time.perf_counter() - started)
    pairs = [a / b for a, b in zip(*seconds, strict=True)]
    return median(pairs), median(seconds[0]), median(seconds[1])


def peak(sites: int) -> None:
    """Print the peak memory of a process after two rounds, and the size of a private state."""
    study = study_of(sites)
    with tempfile.TemporaryDirectory() as folder, deterministic(study.training.machine()):
        one_round = federated(study, Path(folder))
        one_round()
        one_round()
        state = max(Path(folder).glob("sites/*/state/*.safetensors")).stat().st_size
    print(json.dumps([peak_memory(), state]))


def measured_peak(sites: int) -> tuple[int, int]:
    command = [sys.executable, __file__, "--peak", str(sites)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    memory, state = json.loads(done.stdout)
    return memory, state


def print_ratio(network: str, sites: int, *, as_json: bool) -> None:
    value, ours, theirs = ratio(sites, network)
    if as_json:
        print(json.dumps({f"ratio_{sites}": value}))
        return
    print(f"a round of 24 steps at each site (64 px, {network}), median of pairs")
    print(f"{sites:4d} sites: {ours:6.2f} s against {theirs:6.2f} s, ratio {value:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What federation costs.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", type=int)
    parser.add_argument("--network", default="", help="an address, module:Class")
    parser.add_argument("--sites", type=int, choices=REPEATS, default=4, help="with --network")
    arguments = parser.parse_args()
    if arguments.peak:
        peak(arguments.peak)
        return
    if arguments.network:
        print_ratio(arguments.network, arguments.sites, as_json=arguments.json)
        return
    ratios = {sites: ratio(sites) for sites in (4, 32)}
    memory = {sites: measured_peak(sites) for sites in (4, 32)}
    growth = (memory[32][0] - memory[4][0]) / 28
    found = {
        "ratio_4": ratios[4][0],
        "ratio_32": ratios[32][0],
        "memory_per_site": growth / memory[4][1],
    }
    if arguments.json:
        print(json.dumps(found))
        return
    print("a round of 24 steps at each site (64 px, the demo's networks), median of pairs")
    for sites, (value, ours, theirs) in ratios.items():
        print(f"{sites:4d} sites: {ours:6.2f} s against {theirs:6.2f} s, ratio {value:.3f}")
    for sites, (bytes_, _) in memory.items():
        print(f"{sites:4d} sites: peak memory {bytes_ / 2**20:,.0f} MiB")
    print(
        f"growth per site: {growth / 2**20:.2f} MiB; private state {memory[4][1] / 2**20:.2f} MiB"
    )


if __name__ == "__main__":
    main()
