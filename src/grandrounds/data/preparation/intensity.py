"""Greys are brought to one scale, where a site wants that before the study does.

A study divides each volume by its 99th percentile in the brain itself, so "none" is the default.
"""

# SimpleITK has no types of its own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d  # pyright: ignore[reportMissingTypeStubs]

from grandrounds.core.errors import BadImage
from grandrounds.core.sentence import phrase
from grandrounds.data.preparation.volumes import (
    SessionVolumes,
    StepRecord,
    WorkingVolume,
    changed,
    head_in,
    voxels_of,
)

WHITE_GREY = 1000.0  # the grey of white matter, after scaling by it
GREY_BINS, GREY_SMOOTHING = (
    256,
    6.0,
)  # bins between the 1st and 99th percentile, and a kernel's deviation
LEAST_PEAK = 0.25  # of the highest peak: what counts as one


@dataclass(frozen=True)
class ZScore:
    """Subtract the mean and divide by the standard deviation of the brain (without one: the head).

    About half of the values are below 0 then: a study reads them with a window alone, such as
    elements.intensity = { T1w = [-3, 3] }.
    """

    def __call__(self, session: SessionVolumes) -> SessionVolumes:
        """Return the session with each contrast scaled. Raises `BadImage`."""
        return changed(session, lambda _, volume: _scored(volume, session))


@dataclass(frozen=True)
class WhiteMatter:
    """Scale greys so that white matter's is 1000; 0 stays 0.

    White matter is the largest peak of the smoothed density of greys in the brain, of T1w the
    brightest. Reinhold et al., SPIE Medical Imaging 2019, "KDE".
    """

    def __call__(self, session: SessionVolumes) -> SessionVolumes:
        """Return the session with each contrast scaled. Raises `BadImage`."""
        return changed(session, lambda name, volume: _whitened(name, volume, session))


def _scored(volume: WorkingVolume, session: SessionVolumes) -> WorkingVolume:
    values, where = _greys(volume, session)
    mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    record: StepRecord = {"Step": "z-score", "In": where, "Mean": mean, "Deviation": deviation}
    return volume.after(record, (volume.image - mean) / deviation)


def _whitened(contrast: str, volume: WorkingVolume, session: SessionVolumes) -> WorkingVolume:
    values, where = _greys(volume, session)
    white = _white(values, brightest=contrast.lower().startswith("t1"))
    record: StepRecord = {
        "Step": "white matter",
        "Method": "KDE",
        "In": where,
        "Grey": white,
        "Becomes": WHITE_GREY,
    }
    return volume.after(record, volume.image * (WHITE_GREY / white))


def _greys(volume: WorkingVolume, session: SessionVolumes) -> tuple[NDArray[np.float32], str]:
    """Return the greys that the scale is taken from. Raises `BadImage` where they are all equal."""
    brain = session.masks.get("brain")
    inside = voxels_of(brain.image) > 0 if brain else voxels_of(head_in(volume.image)) > 0
    values = voxels_of(volume.image)[inside]
    values = values[values != 0]  # outside of what was scanned
    if not values.size or float(values.std()) == 0:
        raise BadImage(
            "shows nothing inside the brain mask, or one grey alone; the mask must lie on the "
            "brain.",
            safe=phrase("a volume shows one grey alone inside the brain mask"),
        )
    return values, "brain" if brain else "head, by Otsu's threshold"


def _white(values: NDArray[np.float32], *, brightest: bool) -> float:
    """Return the grey at the largest peak of their density, or at the last of the large ones."""
    low, high = np.percentile(values, [1, 99])
    counts, edges = np.histogram(values, bins=GREY_BINS, range=(float(low), float(high)))
    density = np.asarray(
        gaussian_filter1d(counts.astype(np.float64), GREY_SMOOTHING, mode="constant")
    )
    inner = density[1:-1]
    peaks = 1 + np.flatnonzero((inner > density[:-2]) & (inner >= density[2:]))
    large = [int(p) for p in peaks if density[p] >= LEAST_PEAK * density.max()]
    chosen = max(large) if brightest and large else int(density.argmax())
    return float(edges[chosen] + edges[chosen + 1]) / 2
