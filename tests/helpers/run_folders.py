"""A realistic run or comparison folder, written as a run writes it: journal, scores, pictures."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

from grandrounds.core.events import (
    Event,
    GroupPolicy,
    PolicySet,
    RoundFinished,
    RunFinished,
    RunStarted,
    SiteReady,
    SiteTested,
    SiteTrained,
    SiteValidated,
    TopologySet,
    WorkSet,
)
from grandrounds.core.journal import Journal
from grandrounds.core.names import POOLED
from grandrounds.core.run_folder import SCORE_COLUMNS

SITES = ("alder", "birch", "cedar", "dogwood")
TASKS = {
    "alder": ("T1w->T2w", "T2w->PDw"),
    "birch": ("T1w->T2w", "FLAIR->T2w"),
    "cedar": ("T1w->T2w", "T2w->T1w"),
    "dogwood": ("T1w->T2w", "T2w->FLAIR"),
}


UNSEEN = "T1w->T2w"  # the task of sites that did not take part


@dataclass(frozen=True)
class Plan:
    """One arm to write down: its level in dB at each site, its method, its rounds and steps."""

    name: str
    title: str
    description: str
    method: str
    levels: dict[str, float]
    rounds: int = 10
    steps: int = 72
    sites: tuple[str, ...] = SITES
    patients: int = 8
    wobble: float = 0.1  # dB, up and down from patient to patient
    slices: int = 3
    size: int = 64
    simulated: bool = True
    seed: int = 7
    pictured: tuple[int, ...] = (3,)  # patients whose pictures are kept
    drift: float = 0.0  # dB more for each seed above 7
    absent: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])


PFLSYNTH = Plan(
    "pflsynth",
    "pFLSynth",
    "One generator that adapts to each hospital and task; personal parts stay at the hospital.",
    "pflsynth",
    {"alder": 25.5, "birch": 23.4, "cedar": 24.6, "dogwood": 23.4},
    wobble=0.35,
)
FEDAVG = Plan(
    "fedavg",
    "FedAvg",
    "One plain generator, averaged over all hospitals after every round.",
    "fedavg",
    {"alder": 24.5, "birch": 21.3, "cedar": 19.9, "dogwood": 22.9},
)
ALONE_SAME = Plan(
    "local",
    "Local-only (same network)",
    "Each hospital trains the pFLSynth generator on its own images and shares nothing.",
    "local",
    {"alder": 24.9, "birch": 23.4, "cedar": 24.1, "dogwood": 22.7},
)
ALONE_PLAIN = Plan(
    "local-plain",
    "Local-only (plain generator)",
    "Each hospital trains a plain generator on its own images and shares nothing.",
    "local",
    {"alder": 25.3, "birch": 23.7, "cedar": 24.3, "dogwood": 23.0},
)
ARMS = (PFLSYNTH, FEDAVG, ALONE_SAME, ALONE_PLAIN)


def write_comparison(
    folder: Path, arms: Sequence[Plan] = ARMS, *, seeds: Sequence[int] = (7,)
) -> Path:
    """Write every arm with every seed, and the table of arms."""
    for arm in arms:
        for seed in seeds:
            write_run(run_folder(folder, arm.name, seed), replace(arm, seed=seed))
    write_arms(folder, arms, seeds)
    return folder


def run_folder(folder: Path, arm: str, seed: int = 7) -> Path:
    return folder / "arms" / arm / f"seed-{seed}"


def write_arms(folder: Path, arms: Sequence[Plan], seeds: Sequence[int] = (7,)) -> None:
    lines = [f"seeds = {list(seeds)}", 'terms = ["equal for all arms: data and seeds"]']
    lines += [
        f'[[arm]]\nname = "{arm.name}"\ntitle = "{arm.title}"\ndescription = "{arm.description}"\n'
        for arm in arms
    ]
    (folder / "arms.toml").write_text("\n".join(lines))


def write_run(folder: Path, plan: Plan, *, until: int | None = None) -> Path:
    """Write one run; with `until` it stands after that round, neither finished nor tested."""
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text(study(plan))
    journal = Journal(folder / "journal.jsonl")
    for event in beginning(plan):
        journal.append(event)
    for number in range(1, (plan.rounds if until is None else until) + 1):
        for event in one_round(plan, number):
            journal.append(event)
    if until is None:
        for event in ending(plan):
            journal.append(event)
        write_scores(folder / "scores.csv", plan)
        write_panels(folder, plan)
    return folder


def study(plan: Plan) -> str:
    head = f'name = "four-hospitals"\nseed = {plan.seed}\nrounds = {plan.rounds}\n'
    head += '\n[task]\nkind = "synthesis"\n'
    middle = f'\n[method]\nkind = "{plan.method}"\n\n[training]\nbatch_size = 4\nepochs = 3\n'
    sites = [
        f'\n[[site]]\nname = "{site}"\ndata = "simulated"\ntasks = {list(TASKS[site])}\n'
        for site in plan.sites
    ]
    return head + middle + "".join(sites)


def beginning(plan: Plan) -> list[Event]:
    started = RunStarted(
        name="four-hospitals",
        arm=plan.name,
        seed=plan.seed,
        rounds=plan.rounds,
        sites=trained_at(plan),
        study="9f2c" * 16,
        version="0.1.0",
        torch="2.8.0",
        device="cpu",
        precision="bf16",
        threads=1,
    )
    ready = [_ready(plan, site) for site in plan.sites]
    shared = "shared" if plan.method != "local" else "private"
    groups = [
        GroupPolicy("mapper", shared, 12, 82_816),
        GroupPolicy("decoder", shared, 24, 345_313),
    ]
    if plan.method == "pflsynth":
        groups.append(GroupPolicy("personal", "private", 30, 117_440))
    travels = 0 if plan.method == "local" else 3_425_032
    policy = PolicySet(tuple(groups), "shared", travels)
    star = TopologySet("star", 4 * travels, "the slowest site's time", {"server": "every update"})
    work = WorkSet(sum(group.parameters for group in groups), 5_000_000_000)
    return [started, *ready, policy, star, work]


def trained_at(plan: Plan) -> tuple[str, ...]:
    return (POOLED,) if plan.method == "central" else plan.sites


def _ready(plan: Plan, site: str) -> SiteReady:
    counts = {"train": 2, "validation": 1, "test": plan.patients}
    slices = {split: number * plan.slices for split, number in counts.items()}
    cases = dict.fromkeys(TASKS[site], slices)
    return SiteReady(site, TASKS[site], counts, counts, slices, cases, plan.simulated)


def level_at(plan: Plan, site: str) -> float:
    return plan.levels[site] + plan.drift * (plan.seed - 7)


def score_at(plan: Plan, site: str, number: int) -> float:
    return level_at(plan, site) - 7.5 * math.exp(-number / 3) + 0.12 * math.sin(number * 1.7)


def one_round(plan: Plan, number: int) -> list[Event]:
    events: list[Event] = []
    travels = 0 if plan.method == "local" else 1_712_516
    for place, site in enumerate(trained_at(plan)):
        if number in plan.absent.get(site, ()):
            continue
        seconds, losses = 1.6 + 0.2 * place, {"generator": 9.0 / number}
        events.append(SiteTrained(number, site, seconds, 16, plan.steps, travels, travels, losses))
    scores = [score_at(plan, site, number) for site in plan.sites]
    for site, score in zip(plan.sites, scores, strict=True):
        events.append(SiteValidated(number, site, 0.2, 3, score))
    weighted = sum(scores) / len(scores)
    events.append(RoundFinished(number, f"{number:02d}ab" * 16, weighted, number, 2.9))
    return events


def ending(plan: Plan) -> list[Event]:
    tested = [SiteTested(plan.rounds, site, 0.6, 48, {"psnr": 24.0}) for site in plan.sites]
    last = f"{plan.rounds:02d}ab" * 16
    return [*tested, RunFinished(plan.rounds, plan.rounds, last, 31.0, 912_000_000)]


def write_scores(path: Path, plan: Plan) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(SCORE_COLUMNS)
        for site in plan.sites:
            for task in TASKS[site]:
                writer.writerows(score_rows(plan, site, task))


def score_rows(plan: Plan, site: str, task: str) -> list[list[str | int | float]]:
    """Give rows whose patient means lie evenly around the site's level: their mean is the level."""
    rows: list[list[str | int | float]] = []
    middle, level = (plan.patients - 1) / 2, level_at(plan, site)
    for patient in range(plan.patients):
        for piece in range(plan.slices):
            psnr = level + 0.4 * (patient - middle) + 0.1 * (piece - plan.slices // 2)
            psnr += plan.wobble * (-1) ** patient
            values = {"psnr": psnr, "ssim": 0.9 + (psnr - 24) / 40, "nrmse": 0.2 - (psnr - 24) / 50}
            head = [plan.name, plan.seed, site, f"{site}-{patient}", f"{patient}-{piece}", task]
            rows += [[*head, metric, value, plan.rounds] for metric, value in values.items()]
    return rows


def write_matrix(folder: Path, plan: Plan) -> None:
    """Write what every site's model scores: 3 dB less than the own one elsewhere."""
    with (folder / "matrix.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", *SCORE_COLUMNS))
        for model in SITES:
            for site in SITES:
                for row in (row for task in TASKS[site] for row in score_rows(plan, site, task)):
                    value = float(row[7]) - (0 if model == site else 3)
                    writer.writerow((model, *row[:7], value, row[8]))


def write_unseen(folder: Path, plan: Plan, levels: Mapping[str, float]) -> None:
    """Write what an arm reaches at sites that it was trained without, on one of their tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    outside = replace(plan, levels=dict(levels), sites=tuple(levels))
    with (folder / "unseen.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(SCORE_COLUMNS)
        for site in levels:
            writer.writerows(score_rows(outside, site, UNSEEN))


def leave_out(folder: Path, plan: Plan, site: str, **levels: float) -> None:
    """Write the run without a site; others named are held out of that study, too."""
    write_unseen(run_folder(folder / "without" / site, plan.name, plan.seed), plan, levels)


def write_panels(folder: Path, plan: Plan) -> None:
    for number, site in enumerate(plan.sites):
        arrays: dict[str, np.ndarray] = {}
        kept = [(task, patient) for task in TASKS[site] for patient in plan.pictured]
        for index, (task, patient) in enumerate(kept):
            key = number + 10 * TASKS[site].index(task) + 100 * patient
            arrays |= _panel(plan, site, patient, key=key, prefix=f"{index}/", task=task)
        path = folder / "sites" / site / "panels.npz"
        path.parent.mkdir(parents=True)
        np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]


def _panel(
    plan: Plan, site: str, patient: int, *, key: int, prefix: str, task: str
) -> dict[str, np.ndarray]:
    source, target = _pair(plan.size, key)
    strength = 10 ** (-plan.levels[site] / 20)
    wobble = smooth(plan.size, np.random.default_rng(key + 1000 * len(plan.title)))
    prediction = np.clip(target + strength * wobble * (target > 0.02), 0, 1).astype(np.float32)
    images = {"source": source, "target": target, "prediction": prediction}
    words = {"label": np.array(task), "patient": np.array(f"{site}-{patient}")}
    level = {"value": np.array(plan.levels[site] - 0.2)}
    return {prefix + name: array for name, array in (images | words | level).items()}


@cache
def _pair(size: int, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Give a source and its target, which are the same for every arm."""
    random = np.random.default_rng(key)
    return head(size, random, inverted=False), head(size, random, inverted=True)


def smooth(size: int, random: np.random.Generator) -> np.ndarray:
    """Give a smooth random field of unit variance."""
    waves = np.fft.rfft2(random.standard_normal((size, size)))
    reach = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    field = np.fft.irfft2(waves * np.exp(-((reach * 9) ** 2)), s=(size, size))
    return (field - field.mean()) / field.std()


def head(size: int, random: np.random.Generator, *, inverted: bool) -> np.ndarray:
    """Draw an oval with a rim, folds and two dark or bright ventricles."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    oval = np.hypot(x / 0.72, y / 0.9)
    brain, rim = oval < 0.86, (oval > 0.92) & (oval < 1.0)
    folds = 0.5 + 0.13 * smooth(size, random)
    fluid = (np.hypot((np.abs(x) - 0.14) / 0.09, (y + 0.05) / 0.3) < 1) & brain
    image = np.where(brain, 1 - folds if inverted else folds, 0.0)
    image = np.where(fluid, 0.95 if inverted else 0.12, image) + 0.55 * rim
    return np.clip(image, 0, 1).astype(np.float32)


def real(plan: Plan) -> Plan:
    """Give the same plan on real patients."""
    return replace(plan, simulated=False)
