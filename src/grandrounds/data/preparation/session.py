"""One session is prepared from its files to its finished volumes, step by step."""

# SimpleITK has no types of its own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from grandrounds import __version__
from grandrounds.core.errors import BadImage
from grandrounds.data.nifti import canonical_nifti
from grandrounds.data.preparation.bias import CorrectBias
from grandrounds.data.preparation.brain import FindBrain, StripSkull
from grandrounds.data.preparation.intensity import WhiteMatter, ZScore
from grandrounds.data.preparation.quality import SessionQuality, assess
from grandrounds.data.preparation.registration import Register
from grandrounds.data.preparation.resampling import Resample
from grandrounds.data.preparation.settings import PREFERRED_REFERENCES, Preparation
from grandrounds.data.preparation.volumes import (
    SessionVolumes,
    Step,
    WorkingVolume,
    affine_of,
    read_image,
    read_outline,
    voxels_of,
)
from grandrounds.data.session_files import SessionFiles

STEPS_VERSION = 1  # part of every key: raise it whenever a prepared voxel would change


@dataclass(frozen=True)
class Finished:
    """The files of a prepared session, name to content, and what a person should look at."""

    files: Mapping[str, bytes]
    quality: SessionQuality


def name_of(files: SessionFiles) -> str:
    """Return the beginning of all names of a session's files."""
    return "_".join(part for part in (files.patient, files.session) if part)


def steps_for(settings: Preparation) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """Return the steps on the volumes' own grids, and those on the one that all get."""
    placing: list[Step] = [CorrectBias()] if settings.bias else []
    if settings.registration != "none":
        placing.append(Register(settings.registration))
    finishing: list[Step] = [
        Resample(settings.lengths, settings.interpolation, settings.drawn_on),
        *([FindBrain()] if settings.brain == "simple" else []),
        *([StripSkull()] if settings.strip else []),
        *({"none": [], "z-score": [ZScore()], "white-matter": [WhiteMatter()]}[settings.intensity]),
    ]
    return tuple(placing), tuple(finishing)


def prepare_files(
    files: SessionFiles, digests: Mapping[str, str], settings: Preparation
) -> Finished:
    """Prepare a session; `digests` has the SHA-256 of each of its files by name.

    The calling process should let SimpleITK use one thread: several add up in any order. Raises
    `BadImage`.
    """
    placing, finishing = steps_for(settings)
    try:
        placed = reduce(
            lambda session, step: step(session), placing, _read(files, digests, settings)
        )
        done = reduce(lambda session, step: step(session), finishing, placed)
    except BadImage as error:
        told = str(error)
        who = "" if told.startswith("/") else f"{name_of(files)}: "
        raise BadImage(f"{who}{told}", safe=error.safe) from None
    return Finished(dict(_files(files, done)), assess(placed, done))


def _read(files: SessionFiles, digests: Mapping[str, str], settings: Preparation) -> SessionVolumes:
    images = {name: read_image(p, digests[p.name]) for name, p in files.contrasts.items()}
    masks = {
        name: read_outline(p, digests[p.name])
        for name, p in files.masks.items()
        if name != "brain" or settings.brain != "none"
    }
    if not images:
        raise BadImage("has masks alone; a session must have a contrast.")
    return SessionVolumes(_reference(tuple(images), settings.reference), images, masks)


def _reference(contrasts: Sequence[str], wanted: Sequence[str]) -> str:
    """Return the first of the wanted contrasts that there is, or of those that most sites have."""
    ordered = (*wanted, *PREFERRED_REFERENCES, *sorted(contrasts))
    return next(name for name in ordered if name in contrasts)


def _files(files: SessionFiles, done: SessionVolumes) -> Mapping[str, bytes]:
    made: dict[str, bytes] = {}
    masks = {f"{name}mask": volume for name, volume in done.masks.items()}
    for kind, volume in {**done.images, **masks}.items():
        name = f"{name_of(files)}_{kind}"
        voxels = voxels_of(volume.image)
        stored = _labels(voxels) if kind in masks else voxels
        made[f"{name}.nii.gz"] = canonical_nifti(stored, affine_of(volume.image))
        made[f"{name}.json"] = json.dumps(_sidecar(volume, done.reference), indent=2).encode()
    return made


def _labels(voxels: NDArray[np.float32]) -> NDArray[np.generic]:
    """Return a mask's values in a byte where they are whole numbers, as probabilities are not."""
    whole = np.array_equal(voxels, np.rint(voxels)) and 0 <= voxels.min() <= voxels.max() <= 255
    return voxels.astype(np.uint8) if whole else voxels


def _sidecar(volume: WorkingVolume, reference: str) -> Mapping[str, object]:
    """Return a volume's sidecar: its acquisition, and all that was done to its voxels."""
    return {
        **volume.acquisition,
        "Preparation": {
            "Program": f"grandrounds {__version__}",
            "StepsVersion": STEPS_VERSION,
            "Versions": {
                "SimpleITK": sitk.Version.VersionString(),
                "numpy": np.__version__,
            },
            "InputSHA256": volume.digest,
            "Reference": reference,
            "Steps": list(volume.steps),
        },
    }
