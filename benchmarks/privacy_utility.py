"""What differential privacy of patients costs in image quality: PSNR against epsilon.

The simulated four-hospital study is trained without a GAN, for each noise multiplier and each seed,
and once without noise and clipping (`privacy.kind = "none"`, the same network and loss). The score
is the mean over test patients, the sites weighing alike; epsilon is the largest of all sites at the
end of the run, at delta 1e-5.

    python benchmarks/privacy_utility.py [STUDY] [--seeds 3] [--rounds N] [--noises 0.5,1,2,4,8]
        [--clip 1.0] [--set key=value ...] [--out privacy-utility] [--json]

It writes OUT.csv (a row for each run: noise, seed, epsilon, score) and OUT.svg.
"""

import argparse
import csv
import json
import tempfile
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt

from grandrounds.core.events import Event, SiteTrained
from grandrounds.runs.loop import run_study
from grandrounds.study.file import example, read_study


@dataclass(frozen=True)
class Point:
    """One run: the noise multiplier (nan without privacy), the seed, epsilon (inf) and score."""

    noise: float
    seed: int
    epsilon: float
    score: float


def trained(study: Path, options: list[str], folder: Path) -> tuple[float, float]:
    """Return the largest epsilon of all sites, and the mean test score."""
    parsed, told = read_study(study, options), list[float]()

    def hear(event: Event) -> None:
        if isinstance(event, SiteTrained) and event.epsilon is not None:
            told.append(event.epsilon)

    run_study(parsed, folder, listeners=[hear])
    by_patient: dict[tuple[str, str], list[float]] = {}
    with (folder / "scores.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["metric"] == parsed.task.metric:
                place = row["site"], row["patient"]
                by_patient.setdefault(place, []).append(float(row["value"]))
    by_site: dict[str, list[float]] = {}
    for (site, _), values in by_patient.items():
        by_site.setdefault(site, []).append(mean(values))
    return max(told, default=inf), mean(mean(values) for values in by_site.values())


def draw(points: list[Point], path: Path) -> None:
    """Draw the mean score of each noise against epsilon, with each seed, as SVG."""
    figure, axes = plt.subplots(figsize=(6, 4))
    private = [point for point in points if point.epsilon < inf]
    axes.plot([p.epsilon for p in private], [p.score for p in private], "o", alpha=0.4)
    noises = sorted({point.noise for point in private})
    of_noise = [[p for p in private if p.noise == noise] for noise in noises]
    middle = [(mean(p.epsilon for p in each), mean(p.score for p in each)) for each in of_noise]
    axes.plot([each[0] for each in middle], [each[1] for each in middle], "-", label="patients")
    plain = mean(point.score for point in points if point.epsilon == inf)
    axes.axhline(plain, linestyle="--", color="grey", label="without differential privacy")
    axes.set(xscale="log", xlabel="epsilon at delta 1e-5", ylabel="score (PSNR, dB)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study", nargs="?", type=Path, default=example("demo"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--noises", default="0.5,1,2,4,8")
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--set", action="append", default=[], dest="options")
    parser.add_argument("--out", type=Path, default=Path("privacy-utility"))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    common = [*asked.options, "task.adversarial=0"]
    common += [f"rounds={asked.rounds}"] if asked.rounds else []
    points = list[Point]()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, asked.seeds + 1):
            for noise in (None, *map(float, asked.noises.split(","))):
                options = [*common, f"seed={seed}"]
                if noise is not None:
                    options += ["privacy.kind=record", f"privacy.clip={asked.clip}"]
                    options += [f"privacy.noise={noise}"]
                epsilon, score = trained(asked.study, options, Path(folder) / f"{noise}-{seed}")
                points.append(Point(float("nan") if noise is None else noise, seed, epsilon, score))
    write(points, asked.out, as_json=asked.json)


def write(points: list[Point], out: Path, *, as_json: bool) -> None:
    """Write the table and the figure, and print the mean of each noise."""
    with out.with_suffix(".csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(asdict(points[0])))
        table.writeheader()
        table.writerows(map(asdict, points))
    draw(points, out.with_suffix(".svg"))
    found: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(str(point.noise) for point in points):
        same = [point for point in points if str(point.noise) == name]
        epsilon = mean(point.epsilon for point in same)
        label = "without" if epsilon == inf else name
        found[label] = {
            "epsilon": epsilon if epsilon < inf else None,
            "score": mean(point.score for point in same),
        }
    if as_json:
        print(json.dumps(found))
        return
    print(f"{'noise':>8} {'epsilon':>10} {'score':>8}")
    for label, each in found.items():
        epsilon_word = "none" if each["epsilon"] is None else f"{each['epsilon']:.3g}"
        print(f"{label:>8} {epsilon_word:>10} {each['score']:8.3f}")


if __name__ == "__main__":
    main()
