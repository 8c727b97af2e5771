"""Codes of protocols beside codes of hospitals, at hospitals that did not train.

Writes a study of many simulated hospitals, each with a protocol drawn at random; and scores the
models of finished runs at every hospital that they were trained without: as the model came, and
after its private part was trained there.

    python benchmarks/protocols.py study > protocols.toml
    python benchmarks/protocols.py joins runs/codes [--epochs 20] [--json]
"""

import argparse
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from grandrounds.core.run_folder import ComparisonFolder
from grandrounds.runs.adapt import AS_IT_CAME, JoiningSite
from grandrounds.runs.evaluate import model_scorer, weights_for_new_site
from grandrounds.runs.folder import TrainedRun
from grandrounds.runs.site_data import find_site

HEAD = """# {hospitals} simulated hospitals with protocols drawn at random; {held_out} do not train.
name = "protocols"
seed = 1
rounds = 40
holdout_sites = {holdout}

[elements]
contrasts = ["T1w", "T2w"]
size = [64, 64]
spacing = [3.5, 3.5]

[task]
kind = "synthesis"
model = "small"
adversarial = 0

[training]
batch_size = 4
learning_rate = 1e-3
epochs = 2
threads = 1

[method]
kind = "pflsynth"
split = "wide"

[stop]
validate_every = 5
"""
SITE = """
[[site]]
name = "h{number:02d}"
data = "simulated"
tasks = ["T1w->T2w"]
patients = {{ train = 2, validation = 1, test = 8 }}
slices = 8

[site.scanner]
field = {field:.2f}
snr = {snr:.1f}
bias = {bias:.2f}
blur = {blur:.2f}

[site.scanner.protocol]
T1w = {{ {t1} }}
T2w = {{ kind = "spin-echo", tr = {tr:.0f}, te = {te:.0f} }}
"""
RANGES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "spin-echo": {"tr": (400, 700), "te": (8, 20)},
    "mprage": {"tr": (1800, 2400), "te": (2, 5), "ti": (800, 1100)},
    "gradient-echo": {"tr": (15, 40), "te": (3, 6), "flip": (15, 40)},
    "inversion-recovery": {"tr": (1800, 2500), "te": (8, 15), "ti": (700, 1000)},
}


def main() -> None:
    """Write the study, or score runs."""
    options = argparse.ArgumentParser(description=__doc__)
    commands = options.add_subparsers(dest="command", required=True)
    study = commands.add_parser("study")
    study.add_argument("--hospitals", type=int, default=12)
    study.add_argument("--held-out", type=int, default=4)
    study.add_argument("--seed", type=int, default=1)
    joins = commands.add_parser("joins")
    joins.add_argument("folder", type=Path)
    joins.add_argument("--epochs", type=int, default=20)
    joins.add_argument("--json", action="store_true")
    given = options.parse_args()
    if given.command == "study":
        print(study_text(given.hospitals, given.held_out, given.seed), end="")
        return
    rows = list(_rows(given.folder, given.epochs))
    if given.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(*(f"{v:8.2f}" if isinstance(v, float) else f"{v:24}" for v in row.values()))


def study_text(hospitals: int, held_out: int, seed: int) -> str:
    """Return a study in TOML; kinds of T1w take turns, so that those left out have seen kin."""
    draw = random.Random(seed)
    last = [f"h{number:02d}" for number in range(hospitals - held_out + 1, hospitals + 1)]
    head = HEAD.format(hospitals=hospitals, held_out=held_out, holdout=json.dumps(last))
    return head + "".join(_site(number, draw) for number in range(1, hospitals + 1))


def _site(number: int, draw: random.Random) -> str:
    kind = list(RANGES)[(number - 1) % len(RANGES)]
    settings = {name: draw.uniform(*limits) for name, limits in RANGES[kind].items()}
    words = [f'kind = "{kind}"', *(f"{name} = {value:.1f}" for name, value in settings.items())]
    return SITE.format(
        number=number,
        field=draw.uniform(1.5, 3.0),
        snr=draw.uniform(18, 45),
        bias=draw.uniform(0.2, 0.45),
        blur=draw.uniform(0.35, 0.8),
        t1=", ".join(words),
        tr=draw.uniform(2500, 6500),
        te=draw.uniform(70, 130),
    )


def _rows(folder: Path, epochs: int) -> Iterator[dict[str, str | float]]:
    for path in ComparisonFolder(folder).all_trained():
        run = TrainedRun(path.path)
        for site in run.study.holdout_sites:
            yield {"arm": run.score_label.arm, "site": site, **_joined(run, site, epochs)}


def _joined(run: TrainedRun, name: str, epochs: int) -> dict[str, float]:
    """Return the mean PSNR on a hospital's test patients, before and after it trains its part."""
    study, new_site = run.study, find_site(run.study, name)
    with model_scorer(study, **new_site.unknown_to(study)) as scorer:
        joining = JoiningSite(study, scorer, new_site.cohort(study, "train", "test"))
        received, shared = weights_for_new_site(run, scorer), scorer.plan.travels
        models = (
            joining.scored(AS_IT_CAME, 0, received),
            joining.adapted(received, epochs, shared),
        )
        return {each.name: scorer.plan.task.summary(each.scores)["psnr"] for each in models}


if __name__ == "__main__":
    main()
