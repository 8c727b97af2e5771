"""How many groups of a relay pay, with 4, 8 and 16 simulated hospitals of equal data.

The hospitals are made from those of a study: their scanners in turn, each with other noise, blur
and bias field, drawn from a seed. Alone, star (one group), relays and cycle (as many groups as
hospitals) have the same data, splits and local steps; patients are the unit.

    python benchmarks/groups.py studies/comparison.toml --hospitals 4,8,16 --size 64 --rounds 40
"""

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean, stdev

from grandrounds.core.events import Event
from grandrounds.runs.arms import ArmChoice
from grandrounds.runs.comparison import Comparison, ComparisonRun
from grandrounds.study.file import Table, read_study, read_table, to_table
from grandrounds.study.study import SiteSpec

ALONE = "local:task.generator=personalised"
SPREAD = 0.25  # noise, blur and bias of a hospital's scanner: up to so much more or less


def main() -> None:
    """Run all arms for each number of hospitals and print a table, or with --json one object."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("study", type=Path)
    options.add_argument("--hospitals", default="4,8,16")
    options.add_argument("--size", type=int, default=64, help="side of an image in pixels")
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--set", dest="overrides", action="append", default=[])
    options.add_argument("--out", type=Path, default=Path("runs/groups"))
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    spacing = 224 / given.size  # mm: the field of view of the packaged studies
    overrides = (
        *(f"elements.size=[{given.size},{given.size}]", f"elements.spacing=[{spacing},{spacing}]"),
        *(f"rounds={given.rounds}", f"seed={given.seed}", *given.overrides),
    )
    found = {
        count: played(of_hospitals(given.study, count), count, overrides, given.out)
        for count in map(int, given.hospitals.split(","))
    }
    print(json.dumps(found, indent=2) if given.json else table(found))


def of_hospitals(path: Path, count: int) -> Table:
    """Return a study's table with so many hospitals, made from its own in turn."""
    study = read_study(path)
    made = [varied(study.site[n % len(study.site)], n) for n in range(count)]
    return {**read_table(path), "site": to_table(replace(study, site=tuple(made)))["site"]}


def varied(site: SiteSpec, number: int) -> SiteSpec:
    """Return a hospital of another name, with other noise, blur and bias field."""
    draw = Random(f"hospital {number}")
    scanner = site.scanner
    other = replace(
        scanner,
        snr=scanner.snr * draw.uniform(1 - SPREAD, 1 + SPREAD),
        blur=scanner.blur * draw.uniform(1 - SPREAD, 1 + SPREAD),
        bias=scanner.bias * draw.uniform(1 - SPREAD, 1 + SPREAD),
    )
    return replace(site, name=f"h{number + 1:02d}-{site.name}", scanner=other)


def labels_for(count: int) -> list[str]:
    """Return the arms: alone, and relays of 1, 2, 4, ... groups up to the number of hospitals."""
    groups = [n for n in (1, 2, 4, 8, 16, 32) if n < count] + [count]
    return [ALONE, *(f"pflsynth@relay:split=wide:topology.groups={n}" for n in groups)]


def played(
    study: Table, count: int, overrides: Sequence[str], out: Path
) -> dict[str, dict[str, float]]:
    """Run all arms, and return each one's mean score, and its gain over training alone."""
    studies = {arm: arm.study(study, overrides) for arm in map(ArmChoice, labels_for(count))}
    comparison = Comparison(out / f"{count}-hospitals", studies, workers=2)
    comparison.run(unheard)
    seed = next(iter(studies.values())).seed
    scores = {
        arm.label: by_patient(comparison.run_folder(ComparisonRun(arm, seed)) / "scores.csv")
        for arm in studies
    }
    return {label: summary(own, scores[ALONE]) for label, own in scores.items()}


def unheard(cell: ComparisonRun, event: Event) -> None:
    """Hear an event and do nothing."""


def by_patient(path: Path) -> dict[str, dict[str, float]]:
    """Map each hospital to its patients' mean PSNR, where every task of a patient weighs alike."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "psnr":
                tasks = values.setdefault((row["site"], row["patient"]), {})
                tasks.setdefault(row["task"], []).append(float(row["value"]))
    found: dict[str, dict[str, float]] = {}
    for (site, patient), tasks in values.items():
        found.setdefault(site, {})[patient] = fmean(fmean(task) for task in tasks.values())
    return found


def summary(
    own: Mapping[str, Mapping[str, float]], alone: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Return the mean over hospitals, the gain over alone with its error, and the least gain."""
    gains = {s: [own[s][p] - alone[s][p] for p in patients] for s, patients in own.items()}
    every = [gain for site in gains.values() for gain in site]
    return {
        "mean": fmean(fmean(patients.values()) for patients in own.values()),
        "gain": fmean(map(fmean, gains.values())),
        "error": stdev(every) / len(every) ** 0.5,
        "least hospital": min(map(fmean, gains.values())),
        "patients that lose": sum(gain < 0 for gain in every),
    }


def table(found: Mapping[int, Mapping[str, Mapping[str, float]]]) -> str:
    lines = ["hospitals | arm | PSNR, dB | over alone | least hospital | patients that lose"]
    for count, arms in found.items():
        for label, row in arms.items():
            said = "alone" if label == ALONE else f"{label.rpartition('=')[2]} groups"
            lines.append(
                f"{count} | {said} | {row['mean']:.2f} | {row['gain']:+.2f} (error "
                f"{row['error']:.2f}) | {row['least hospital']:+.2f} | "
                f"{row['patients that lose']:.0f}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
