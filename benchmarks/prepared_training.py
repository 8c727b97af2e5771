"""Does preparing help training? Misplaced and shaded volumes, the same prepared, and clean ones.

Two simulated hospitals, T1w to T2w at 64 px: each T2w is turned by up to 6 degrees and shifted by
up to 8 mm about each axis, and the coils shade strongly (bias 0.6). "Prepared" are these volumes
after `grandrounds site prepare` (N4 in the brain's mask, rigid registration). Each model is tested
on its own kind of test patients, and on the clean volumes of the same patients.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

import grandrounds
from grandrounds.data.elements import Elements
from grandrounds.data.nifti import canonical_nifti
from grandrounds.data.preparation.cohort import prepare_folder
from grandrounds.data.preparation.settings import Preparation
from grandrounds.data.preparation.volumes import affine_of, image_of, resampled, voxels_of
from grandrounds.data.simulation.simulate import Scanner, simulate_session
from grandrounds.runs.evaluate import score_at_site
from grandrounds.runs.folder import TrainedRun
from grandrounds.runs.site_data import find_site

SIZE, SPACING = (17, 64, 64), (3.0, 3.5, 3.5)
SITES: Mapping[str, float] = {"alder": 1.5, "birch": 3.0}  # tesla
PATIENTS = 10
KINDS = ("as scanned", "prepared", "clean")


def study_of(rounds: int, seed: int) -> dict[str, object]:
    return {
        "name": "prepared",
        "seed": seed,
        "rounds": rounds,
        "elements": {
            "contrasts": ["T1w", "T2w"],
            "size": list(SIZE[1:]),
            "spacing": list(SPACING[1:]),
            "split": {"train": 0.6, "validation": 0.1, "test": 0.3},
        },
        "task": {"kind": "synthesis", "model": "small"},
        "training": {"batch_size": 4, "learning_rate": 5e-4, "threads": 2},
        "method": {"kind": "fedavg"},
        "site": [{"name": name, "tasks": ["T1w->T2w"]} for name in SITES],
    }


def affine() -> NDArray[np.float64]:
    axes = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]]) * SPACING
    found = np.eye(4)
    found[:3, :3], found[:3, 3] = axes, -axes @ ((np.array(SIZE) - 1) / 2)
    return found


def save(path: Path, image: sitk.Image, kind: type = np.float32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(canonical_nifti(voxels_of(image).astype(kind), affine_of(image)))


def displacement(draw: np.random.Generator) -> sitk.Transform:
    found = sitk.Euler3DTransform()
    found.SetRotation(*np.radians(draw.uniform(-6, 6, 3)).tolist())
    found.SetTranslation(draw.uniform(-8, 8, 3).tolist())
    return found


def write_site(folder: Path, name: str) -> None:
    """Write a hospital's patients as scanned and clean; the noise and heads are the same."""
    elements = Elements(("T1w", "T2w"), SIZE[1:], SPACING[1:])
    for number in range(1, PATIENTS + 1):
        who, draw = f"sub-{number:02d}", np.random.default_rng([number, ord(name[0])])
        for kind, bias in (("as scanned", 0.6), ("clean", 0.0)):
            scanner = Scanner(field=SITES[name], bias=bias)
            made = simulate_session(1, name, who, scanner, elements, slices=SIZE[0])
            first, second = (image_of(made.images[:, i], affine()) for i in (0, 1))
            if kind == "as scanned":
                second = resampled(second, second, displacement(draw), sitk.sitkBSpline)
                second = sitk.Clamp(second, sitk.sitkFloat32, 0.0)
            brain = image_of(np.asarray(made.masks["brain"], dtype=np.float32), affine())
            place = folder / kind / name
            save(place / f"{who}_T1w.nii.gz", first)
            save(place / f"{who}_T2w.nii.gz", second)
            save(place / f"{who}_brainmask.nii.gz", brain, np.uint8)


def clean_score(run: grandrounds.FinishedRun, folder: Path) -> float:
    """Test each site's model on the clean volumes of the site's own test patients."""
    means: list[float] = []
    for name in SITES:
        path = folder / f"{name}.toml"
        path.write_text(f'name = "{name}"\ndata = "clean/{name}"\n')
        trained = TrainedRun(run.folder)
        scores = score_at_site(trained, find_site(trained.study, str(path)))
        means.append(float(np.mean([score.values["psnr"] for score in scores])))
    return float(np.mean(means))


def measure(rounds: int, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    for name in SITES:
        write_site(folder, name)
        settings = Preparation(folder / "as scanned" / name)
        prepare_folder(settings, folder / "prepared" / name, told=lambda *_: None)
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        study = grandrounds.load(study_of(rounds, seed))
        data = {name: folder / kind / name for name in SITES}
        out = folder / "runs" / kind.replace(" ", "-")
        run = grandrounds.run(study, out, data=data, progress=False)
        found[kind] = {"own": run.mean("psnr"), "clean": clean_score(run, folder)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked.rounds, asked.seed, Path(folder))
    if asked.json:
        print(json.dumps(found))
        return
    print(f"{'trained on':<12}  {'PSNR, same kind':>16}  {'PSNR, clean':>12}   (dB)")
    for kind, scores in found.items():
        print(f"{kind:<12}  {scores['own']:>16.2f}  {scores['clean']:>12.2f}")


if __name__ == "__main__":
    main()
