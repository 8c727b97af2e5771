"""What preparing a session costs, beside SimpleITK's own calls for N4, registration and resampling.

Of a folder of real sessions (by default $GRANDROUNDS_DATA/mri/site-lju15t), the first ones; one
thread, seconds of the processor. "Plain" has the same N4 and the same levels of mutual information,
and neither reads headers with care nor writes records, pictures or compressed files. `--masks`
compares the simple brain mask with the site's own instead.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from grandrounds.data.preparation.brain import simple_brain
from grandrounds.data.preparation.cohort import prepare_folder
from grandrounds.data.preparation.registration import COARSE_TO_FINE
from grandrounds.data.preparation.session import prepare_files
from grandrounds.data.preparation.settings import Preparation
from grandrounds.data.preparation.volumes import read_image, voxels_of
from grandrounds.data.session_cache import file_digest
from grandrounds.data.session_files import SessionFiles, find_sessions


def plain(files: SessionFiles, folder: Path) -> None:
    """Do the same with SimpleITK alone, as a script of a page of its documentation would."""
    mask = sitk.ReadImage(str(files.masks["brain"]), sitk.sitkUInt8)
    images = {
        n: n4(sitk.ReadImage(str(p), sitk.sitkFloat32), mask) for n, p in files.contrasts.items()
    }
    fixed = images.pop("T1w", None) or images.pop(next(iter(images)))
    for name, moving in images.items():
        found = registered(fixed, moving)
        moved = sitk.Resample(moving, fixed, found, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
        sitk.WriteImage(moved, str(folder / f"{name}.nii"))


def n4(image: sitk.Image, mask: sitk.Image) -> sitk.Image:
    shrink = [max(1, round(5.0 / length)) for length in image.GetSpacing()]
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetMaximumNumberOfIterations([40, 40, 40])
    method.SetConvergenceThreshold(1e-3)
    method.Execute(sitk.Shrink(image, shrink), sitk.Shrink(mask, shrink))
    field = sitk.Cast(method.GetLogBiasFieldAsImage(image), sitk.sitkFloat32)
    return image / sitk.Exp(field)


def registered(fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.05, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-2, 150)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([level.grid / 2 for level in COARSE_TO_FINE])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(fixed, moving)


def seconds(work: object) -> float:
    assert callable(work)
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(source: Path, number: int) -> dict[str, float]:
    ours, theirs = list[float](), list[float]()
    sessions = [files for files in find_sessions(source) if len(files.contrasts) > 1][:number]
    with tempfile.TemporaryDirectory() as folder:
        for files in sessions:
            paths = [*files.contrasts.values(), *files.masks.values()]
            digests = {path.name: file_digest(path) for path in paths}
            ours.append(
                seconds(lambda f=files, d=digests: prepare_files(f, d, Preparation(source)))
            )
            theirs.append(seconds(lambda f=files: plain(f, Path(folder))))
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return {
        "seconds": float(np.median(ours)),
        "plain_seconds": float(np.median(theirs)),
        "ratio": float(np.median(ratios)),
    }


def again(source: Path) -> dict[str, float]:
    """Time a second run over a folder that is prepared already; its steps do not matter."""
    settings = Preparation(source, bias=False, registration="none")
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            start = time.perf_counter()
            prepare_folder(settings, Path(folder) / "ready", told=lambda *_: None)
            found.append(time.perf_counter() - start)
    return {"second_run_seconds": found[1]}


def masks(source: Path) -> dict[str, float]:
    """Return Dice of the simple mask with the site's own, for each contrast of each session."""
    found: dict[str, float] = {}
    for files in find_sessions(source):
        own = voxels_of(read_image(files.masks["brain"], "").image) > 0
        for name, path in files.contrasts.items():
            made = voxels_of(simple_brain(read_image(path, "").image)) > 0
            both = 2 * np.count_nonzero(own & made) / (own.sum() + made.sum())
            found[f"{files.patient}_{files.session}_{name}"] = round(float(both), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument("--masks", action="store_true", help="the simple brain mask")
    parser.add_argument("--sessions", type=int, default=3)
    default = Path(os.environ.get("GRANDROUNDS_DATA", "../shared/data")) / "mri/site-lju15t"
    parser.add_argument("--source", type=Path, default=default)
    asked = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if asked.masks:
        found = masks(asked.source)
        found |= {"mean": round(float(np.mean(list(found.values()))), 3)}
    else:
        found = compare(asked.source, asked.sessions) | again(asked.source)
    if asked.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<24} {value:.3f}")


if __name__ == "__main__":
    main()
