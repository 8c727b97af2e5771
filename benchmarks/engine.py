"""What the engines cost: the same FedAvg work at 4 sites, with models of 1, 25 and 100 MB.

Compared: FedAvg as a bare PyTorch loop (nothing sent, checked or saved) and our in-process engine,
in turns in one process; ours on NVFlare, NVFlare's own FedAvg recipe, and FedAvg by its Collab API,
each in NVFlare's simulator with a process for each site. Then a step of split learning on NVFlare
over 127.0.0.1, with activations of 0.5 MB. Every process computes with one thread; a round is 24
steps of 8 rows at each site.

    python benchmarks/engine.py [--sizes 1,25,100] [--json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Event, Thread

import numpy as np
import psutil
import torch
from overhead import federated, in_turns
from recipe_client import Net, local_round, optimizer_of

from grandrounds.core.device import deterministic
from grandrounds.core.events import RoundFinished
from grandrounds.core.journal import read_journal
from grandrounds.flare.job import ALLOWED, export_job, run_name
from grandrounds.runs.site_data import open_sites
from grandrounds.study.file import parse_study
from grandrounds.study.site_file import SiteFile, read_site
from grandrounds.study.study import Study
from grandrounds.tasks.task import Batch

SITES = ("alder", "birch", "cedar", "elder")
VARIABLES = 20  # and the target
BATCH, STEPS = 8, 24
ROUNDS = 8  # the first only warms up
REPEATS = 5
SPLIT = (2048, 16)  # widths; the first goes to the server, 64 rows at a time
SPLIT_BATCH, SPLIT_ROUNDS = 64, 5
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cost:
    """What an engine took: seconds a round, and of its site processes the largest."""

    seconds: float
    memory_mib: float
    threads: int


@dataclass
class Watch:
    """What the simulator's site processes took at most: MiB and threads."""

    memory_mib: float = 0.0
    threads: int = 0
    _over: Event = field(default_factory=Event)

    def look(self, pid: int) -> None:
        while not self._over.wait(0.25):
            for process in psutil.Process(pid).children(recursive=True):
                self._note(process)

    def _note(self, process: psutil.Process) -> None:
        try:
            if any("simulator_worker" in word for word in process.cmdline()):
                mib = process.memory_info().rss / 2**20
                self.memory_mib = max(self.memory_mib, mib)
                self.threads = max(self.threads, process.num_threads())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            pass

    @contextmanager
    def over(self, pid: int) -> Iterator[None]:
        watcher = Thread(target=self.look, args=(pid,))
        watcher.start()
        try:
            yield
        finally:
            self._over.set()
            watcher.join()


def fedavg(megabytes: float) -> Study:
    """FedAvg of a perceptron whose weights have so many bytes, in layers of 4 MB at most."""
    numbers = megabytes * 1e6 / 4
    width = min(1024, round(numbers**0.5))
    hidden = [width] * (1 + round(numbers / width**2))
    return study_of(f"size-{megabytes:g}", hidden, BATCH, {"kind": "star"}, ROUNDS)


def study_of(
    name: str, hidden: Sequence[int], batch: int, topology: Mapping[str, object], rounds: int
) -> Study:
    return parse_study(
        {
            "name": name,
            "seed": 1,
            "rounds": rounds,
            "elements": {"variables": [*names(), "target"]},
            "task": {"kind": "tabular", "hidden": list(hidden)},
            "training": {"batch_size": batch, "threads": 1},
            "topology": dict(topology),
            "method": {"kind": "fedavg"},
            "stop": {"validate_every": rounds, "test": "last"},
            "site": [{"name": site, "tasks": ["variables->target"]} for site in SITES],
        }
    )


def names() -> list[str]:
    return [f"v{number:02d}" for number in range(VARIABLES)]


def tables(folder: Path, patients: int) -> tuple[SiteFile, ...]:
    """Write a table of random patients and a site file for each site."""
    generator = np.random.default_rng(1)
    for site in SITES:
        rows = generator.normal(size=(patients, VARIABLES + 1))
        lines = [
            "\t".join([f"sub-{number:04d}", *(f"{value:.4f}" for value in row)])
            for number, row in enumerate(rows)
        ]
        header = "\t".join(["participant_id", *names(), "target"])
        path = folder / f"{site}.tsv"
        path.write_text("\n".join([header, *lines]) + "\n")
        (folder / f"{site}.toml").write_text(f'name = "{site}"\ndata = "{path}"\n')
    return tuple(read_site(folder / f"{site}.toml") for site in SITES)


def patients_for(steps: int, batch: int) -> int:
    """So many patients that a site's training part has this number of steps."""
    return round(steps * batch / 0.7)


def in_process(study: Study, files: Sequence[SiteFile]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, deterministic(study.training.machine()):
        one, other = federated(study, Path(folder), files), bare(study, rows_of(study, files))
        ratio, ours, plain = in_turns(one, other, REPEATS)
    return {"ratio": ratio, "seconds": ours, "bare_seconds": plain}


def rows_of(study: Study, files: Sequence[SiteFile]) -> dict[str, Batch]:
    """Give each site's training rows."""
    task = study.make_task()
    found = {
        name: task.training_examples(o.cohorts) for name, o in open_sites(study, files).items()
    }
    return {name: rows.batch(range(len(rows)), None) for name, rows in found.items()}


def widths_of(study: Study) -> list[int]:
    shapes = [p.shape for p in study.make_task().build(study.seed).parameters() if p.ndim == 2]
    return [shapes[0][1], *(shape[0] for shape in shapes)]


def bare(study: Study, rows: Mapping[str, Batch]) -> Callable[[], None]:
    """FedAvg in plain PyTorch: a model and an optimiser for each site, and the mean of weights."""
    models = {name: Net(widths_of(study)) for name in rows}
    optimizers = {name: optimizer_of(model) for name, model in models.items()}
    shared = [models[SITES[0]].state_dict()]

    def one_round() -> None:
        for name, model in models.items():
            model.load_state_dict(shared[-1])
            local_round(model, optimizers[name], rows[name], study.training.batch_size)
        states = [model.state_dict() for model in models.values()]
        total = sum(len(each["source"]) for each in rows.values())
        shares = [len(each["source"]) / total for each in rows.values()]
        shared[:] = [
            {
                name: sum(share * state[name] for share, state in zip(shares, states, strict=True))
                for name in states[0]
            }
        ]

    return one_round


def on_nvflare(study: Study, sites: Path, folder: Path) -> Cost:
    """Play a study as a job of ours in NVFlare's simulator."""
    job, play = folder / "job", folder / "ours"
    export_job(study, job)
    local = play / "local"
    local.mkdir(parents=True)
    allowed = {"format_version": 2, "class_allow_list": list(ALLOWED)}
    (local / "resources.json").write_text(json.dumps(allowed))
    for path in sites.glob("*.toml"):
        (local / path.name).write_text(path.read_text())
    nvflare = Path(sys.executable).with_name("nvflare")
    words = ("simulator", job, "-w", play, "-c", ",".join(SITES), "-t", str(len(SITES)))
    watch = played([nvflare, *words], folder / "ours.log")
    journal = play / "server" / "grandrounds" / run_name(study) / "journal.jsonl"
    ends = [at for at, event in read_journal(journal) if isinstance(event, RoundFinished)]
    return Cost(between(ends), watch.memory_mib, watch.threads)


def by_nvflare(kind: str, study: Study, files: Sequence[SiteFile], folder: Path) -> Cost:
    """Play the same work by NVFlare's own FedAvg recipe or Collab API, in its simulator."""
    folder = folder / kind
    rows, times = folder / "rows", folder / "times"
    rows.mkdir(parents=True)
    times.mkdir()
    for name, batch in rows_of(study, files).items():
        torch.save(batch, rows / f"{name}.pt")
    given = {"rows": str(rows), "times": str(times), "widths": widths_of(study), "batch": BATCH}
    given |= {"rounds": study.rounds, "sites": list(SITES), "workspace": str(folder / "played")}
    words = [sys.executable, HERE / "recipe.py", kind, json.dumps(given)]
    watch = played(words, folder / "played.log")
    began = [float(line) for line in (times / SITES[0]).read_text().split()]
    return Cost(between(began), watch.memory_mib, watch.threads)


def between(times: Sequence[float]) -> float:
    """Give the median seconds of a round, without the first."""
    return median(later - earlier for earlier, later in pairwise(times))


def played(words: Sequence[str | Path], log: Path) -> Watch:
    watch = Watch()
    with log.open("wb") as out:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(words, stdout=out, stderr=out, cwd=log.parent, env=environment)
        with watch.over(process.pid):
            code = process.wait()
    if code:
        raise SystemExit(f"{words[0]} ended with {code}:\n{log.read_text()[-3000:]}")
    return watch


def split_step() -> dict[str, float]:
    """Measure a step of split learning: activations there, gradients back."""
    topology = {"kind": "split", "cut": "hidden_1"}
    study = study_of("split", SPLIT, SPLIT_BATCH, topology, SPLIT_ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        files = tables(Path(folder), patients_for(STEPS, SPLIT_BATCH))
        rows = rows_of(study, files).values()
        steps = sum(-(-len(each["source"]) // SPLIT_BATCH) for each in rows)
        cost = on_nvflare(study, Path(folder), Path(folder))
    return {
        "activation_bytes": SPLIT_BATCH * SPLIT[0] * 4,
        "steps_a_round": steps,
        "ms": 1e3 * cost.seconds / steps,
    }


def measured(megabytes: float) -> dict[str, object]:
    study = fedavg(megabytes)
    with tempfile.TemporaryDirectory() as folder:
        files = tables(Path(folder), patients_for(STEPS, BATCH))
        here = in_process(study, files)
        ours = on_nvflare(study, Path(folder), Path(folder))
        recipe = by_nvflare("fedavg", study, files, Path(folder))
        calls = by_nvflare("collab", study, files, Path(folder))
    return {
        "in_process": here,
        "on_nvflare": asdict(ours),
        "recipe": asdict(recipe),
        "collab": asdict(calls),
        "ratio_to_recipe": ours.seconds / recipe.seconds,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sizes", default="1,25,100")
    options.add_argument("--no-split", action="store_true")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    sizes = [float(size) for size in given.sizes.split(",")]
    found = {f"{size:g}": measured(size) for size in sizes}
    split = {} if given.no_split else split_step()
    if given.json:
        print(json.dumps({"sizes": found, "split": split}, indent=2))
        return
    for size, each in found.items():
        print(f"{size} MB")
        for engine, cost in each.items():
            print(f"  {engine}: {cost}")
    print(f"split: {split}")


if __name__ == "__main__":
    main()
