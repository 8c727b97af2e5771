"""What compressed updates cost in image quality, and what they save in bytes.

A study is trained with each form of `[exchange]` and without, for each seed. Bytes are those of the
sites' updates (`bytes_up` over `bytes_full` of rounds.csv, in a star); the score is the mean over
the test patients, the sites weighing alike, and the difference is paired by seed.

    python benchmarks/exchange.py [STUDY] [--seeds 3] [--rounds N] [--set key=value ...] [--json]

With `--json` it prints, for each form, `bytes_ratio` and `difference` (in the metric's unit: dB for
PSNR).
"""

import argparse
import csv
import json
import tempfile
from pathlib import Path
from statistics import mean

from grandrounds.runs.loop import run_study
from grandrounds.study.file import example, read_study

FORMS: dict[str, tuple[str, ...]] = {
    "full": (),
    "bf16": ("exchange.kind=bf16",),
    "int8": ("exchange.kind=int8",),
    "topk 0.1": ("exchange.kind=topk", "exchange.fraction=0.1"),
    "topk 0.01": ("exchange.kind=topk", "exchange.fraction=0.01"),
}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def trained(study: Path, options: list[str], folder: Path) -> tuple[float, float]:
    """Return the bytes of the updates over those in full, and the mean test score."""
    parsed = read_study(study, options)
    run_study(parsed, folder)
    traffic = rows(folder / "rounds.csv")
    full = sum(int(row.get("bytes_full") or row["bytes_up"]) for row in traffic)
    sent = sum(int(row["bytes_up"]) for row in traffic)
    by_patient: dict[tuple[str, str], list[float]] = {}
    for row in rows(folder / "scores.csv"):
        if row["metric"] == parsed.task.metric:
            place = (row["site"], row["patient"])
            by_patient.setdefault(place, []).append(float(row["value"]))
    by_site: dict[str, list[float]] = {}
    for (site, _), values in by_patient.items():
        by_site.setdefault(site, []).append(mean(values))
    return sent / full, mean(mean(values) for values in by_site.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study", nargs="?", type=Path, default=example("demo"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="options")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rounds = [f"rounds={asked.rounds}"] if asked.rounds else []
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in FORMS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, asked.seeds + 1):
            for name, form in FORMS.items():
                options = [*asked.options, *rounds, f"seed={seed}", *form]
                place = Path(folder) / f"{name}-{seed}".replace(" ", "-")
                found[name].append(trained(asked.study, options, place))
    print_results(found, as_json=asked.json)


def print_results(found: dict[str, list[tuple[float, float]]], *, as_json: bool) -> None:
    full = [score for _, score in found["full"]]
    results = {
        name: {
            "bytes_ratio": mean(ratio for ratio, _ in of_seeds),
            "score": mean(score for _, score in of_seeds),
            "difference": mean(
                score - plain for (_, score), plain in zip(of_seeds, full, strict=True)
            ),
        }
        for name, of_seeds in found.items()
    }
    if as_json:
        print(json.dumps(results))
        return
    print(f"{len(full)} seeds; bytes of the sites' updates, and the mean test score")
    print(f"{'exchange':<12}{'bytes':>8}{'score':>10}{'difference':>12}")
    for name, each in results.items():
        print(
            f"{name:<12}{each['bytes_ratio']:>8.3f}{each['score']:>10.3f}{each['difference']:>+12.3f}"
        )


if __name__ == "__main__":
    main()
