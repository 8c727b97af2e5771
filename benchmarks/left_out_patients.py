"""Real sites with few patients: every patient is tested in turn, by models that never saw him.

A fold is another deal of each site's patients (`elements.split.salt`), chosen so that every patient
who has all contrasts in one session is a test patient, and as early as possible. A site with fewer
of them than there are folds tests some more than once; a patient's scores are averaged first.
Patients are the unit.

    python benchmarks/left_out_patients.py studies/real.toml --site a.toml --site b.toml \
        --arms pflsynth@relay:split=wide:topology.groups=2,local,local:steps=x2,alone
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from statistics import fmean, stdev
from typing import TypedDict

from grandrounds.data.cohort import split_patients
from grandrounds.data.elements import Fractions
from grandrounds.data.session_files import find_sessions
from grandrounds.runs.arms import ArmChoice
from grandrounds.study.file import read_study
from grandrounds.study.site_file import read_site

Patients = Mapping[str, Sequence[str]]  # site -> names
Patient = tuple[str, str]  # site, and name or pseudonym
Scores = dict[Patient, dict[str, float]]  # task -> PSNR
Means = Mapping[Patient, float]


class Row(TypedDict):
    """What the table says of an arm."""

    arm: str
    sites: dict[str, float]
    mean: float
    patients: int
    better: float
    error: float
    gaining: int


def main() -> None:
    """Run the arms on every fold, and print a table, or with --json one object."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("study", type=Path)
    options.add_argument("--site", type=Path, action="append", required=True)
    options.add_argument("--arms", required=True)
    options.add_argument("--folds", type=int, default=0, help="0: until all patients are tested")
    options.add_argument("--set", dest="overrides", action="append", default=[])
    options.add_argument("--out", type=Path, default=Path("runs/left-out-patients"))
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    files = [read_site(path) for path in given.site]
    study = read_study(given.study, given.overrides)
    sessions = {file.name: find_sessions(file.data) for file in files}
    patients = {site: sorted({s.patient for s in own}) for site, own in sessions.items()}
    wanted = set(study.elements.contrasts)
    testable = {
        (site, each.patient)
        for site, own in sessions.items()
        for each in own
        if wanted <= set(each.contrasts)
    }
    salts = folds(patients, testable, study.elements.split, given.folds)
    for number, salt in enumerate(salts, start=1):
        play(given, salt, given.out / f"fold-{number}")
    found = [read_fold(given.out / f"fold-{n}") for n in range(1, len(salts) + 1)]
    rows = summary(pooled(found), given.arms.split(","))
    print(json.dumps(rows, indent=2) if given.json else table(rows))


def folds(
    patients: Patients, testable: set[Patient], fractions: Fractions, wanted: int
) -> list[str]:
    """Return salts that test everyone who is testable, each someone new wherever there is one."""
    untested, salts = set(testable), list[str]()
    for salt in map("fold {}".format, count()):
        if len(salts) == wanted > 0 or not untested:
            break
        tests = tested(patients, fractions, salt)
        new = tests & untested
        if tests <= testable and {site for site, _ in new} == {site for site, _ in untested}:
            salts.append(salt)
            untested -= new
    return salts


def tested(patients: Patients, fractions: Fractions, salt: str) -> set[Patient]:
    """Return the patients whom a salt has tested, at all sites."""
    dealt = Fractions(fractions.train, fractions.validation, fractions.test, salt)
    return {
        (site, name)
        for site, names in patients.items()
        for name, split in split_patients(names, dealt, site=site).items()
        if split == "test"
    }


def play(given: argparse.Namespace, salt: str, out: Path) -> None:
    """Compare the arms on one fold; a fold that is finished already is left as it is."""
    program = Path(sys.executable).with_name("grandrounds")
    sites = [word for path in given.site for word in ("--site", str(path))]
    overrides = [word for each in given.overrides for word in ("--set", each)]
    words = [
        *(str(program), "compare", str(given.study), *sites, *overrides),
        *("--set", f'elements.split.salt="{salt}"', "--arms", given.arms),
        *("--no-figures", "--quiet", "--out", str(out)),
    ]
    done = subprocess.run(words, stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def read_fold(folder: Path) -> dict[str, Scores]:
    """Map each arm to its test patients' PSNR by task."""
    found: dict[str, dict[Patient, dict[str, list[float]]]] = {}
    for path in sorted(folder.glob("arms/*/seed-*/scores.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["metric"] == "psnr":
                    tasks = found.setdefault(row["arm"], {}).setdefault(
                        (row["site"], row["patient"]), {}
                    )
                    tasks.setdefault(row["task"], []).append(float(row["value"]))
    return {
        arm: {who: {t: fmean(v) for t, v in tasks.items()} for who, tasks in patients.items()}
        for arm, patients in found.items()
    }


def pooled(found: Sequence[Mapping[str, Scores]]) -> dict[str, Means]:
    """Map each arm to each patient's PSNR, the mean over tasks, then over the folds."""
    values: dict[str, dict[Patient, list[float]]] = {}
    for arm, patients in (each for fold in found for each in fold.items()):
        for who, tasks in patients.items():
            values.setdefault(arm, {}).setdefault(who, []).append(fmean(tasks.values()))
    return {arm: {w: fmean(v) for w, v in patients.items()} for arm, patients in values.items()}


def summary(values: Mapping[str, Means], arms: Sequence[str]) -> list[Row]:
    """Return for each arm its mean by site, over sites, and how far the first arm is above it."""
    names = [ArmChoice(arm).name for arm in arms]
    return [row(name, values[name], values[names[0]]) for name in names]


def row(arm: str, own: Means, first: Means) -> Row:
    """Return an arm's means, and its patients' distances to the first arm."""
    sites = list(dict.fromkeys(site for site, _ in own))
    gains = [first[who] - value for who, value in own.items()]
    return {
        "arm": arm,
        "sites": {s: fmean(v for (at, _), v in own.items() if at == s) for s in sites},
        "mean": fmean(fmean(v for (at, _), v in own.items() if at == s) for s in sites),
        "patients": len(own),
        "better": fmean(gains),
        "error": stdev(gains) / len(gains) ** 0.5,
        "gaining": sum(gain > 0 for gain in gains),
    }


def table(rows: Sequence[Row]) -> str:
    """Write the summary as a table of Markdown."""
    sites = list(rows[0]["sites"])
    lines = [
        f"| arm | mean, dB | {' | '.join(sites)} | the first arm is better by | for patients |",
        "|---" * (4 + len(sites)) + "|",
    ]
    for each in rows:
        own = " | ".join(f"{each['sites'][site]:.2f}" for site in sites)
        lines.append(
            f"| {each['arm']} | {each['mean']:.2f} | {own} | {each['better']:+.2f} "
            f"({each['error']:.2f}) | {each['gaining']} of {each['patients']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
