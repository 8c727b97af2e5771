"""A simulated head is a template's tissues, deformed, with new folds and lesions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from grandrounds.data.simulation.fields import Array, Axes, linear_taps, random_field

Streams: TypeAlias = Callable[[str], np.random.Generator]  # a generator for each purpose
STORED = ("csf", "grey", "white", "deep grey", "fat", "muscle", "marrow", "bone")
HEAD = (*STORED, "lesion")
CSF, WHITE, FAT, LESION = (HEAD.index(tissue) for tissue in ("csf", "white", "fat", "lesion"))
BRAIN = [HEAD.index(tissue) for tissue in ("csf", "grey", "white", "deep grey", "lesion")]
_MIDDLE = np.array([86.0, 117.0, 98.0])  # template mm (up, forward, right)
ROTATION = np.radians([4.0, 3.0, 3.0])  # standard deviations about the axes up, forward, right
SCALE, GLOBAL_SCALE = 0.045, 0.02
ELASTIC = ((3.5, 26.0), (1.3, 10.0))  # mm of displacement, mm of smoothness
KNOTS = 4.0  # mm between the places where the elastic displacement is computed
FOLDS, FOLD_WIDTH = 1.1, 1.7  # strength on the logits, mm
SHARPNESS, FLOOR = 1.6, 0.001
CSF_SPREAD = 0.45
LEAST_FAT = 0.5
MOST_LESIONS, LESION_RADIUS = 8, (1.2, 3.8)  # mm
LESION_EDGE = 1.0  # mm over which a lesion fades
BLOCK = 16384  # samples rendered at a time: their arrays then stay in the processor's cache


@dataclass(frozen=True)
class Template:
    """The shipped fractions of the eight stored tissues, and where in them lesions can grow.

    `voxels` (up, forward, right) holds a byte for each tissue, read as one number so that one
    look-up returns them all; `origin`, `spacing` and `lesion_sites` (place, axis) are template mm.
    """

    voxels: NDArray[np.uint64]
    origin: NDArray[np.float64]
    spacing: float
    lesion_sites: NDArray[np.float64]

    def at(self, places: Array) -> Array:
        """Interpolate the fractions (tissue, place) at places (axis, place) in template mm."""
        where = (places - self.origin[:, None].astype(np.float32)) / np.float32(self.spacing)
        highest = np.array(self.voxels.shape, np.int32)[:, None] - 2
        corner = where.astype(np.int32).clip(0, highest)
        upper = (where - corner).astype(np.float32).clip(0, 1)
        shares = np.stack([1 - upper, upper])
        strides = np.array(self.voxels.strides) // self.voxels.itemsize
        first = strides @ corner
        mixed = np.zeros((places.shape[1], len(STORED)), np.float32)
        for step in np.ndindex(2, 2, 2):
            nodes = self.voxels.reshape(-1).take(first + strides @ step)
            share = shares[step[0], 0] * shares[step[1], 1] * shares[step[2], 2]
            mixed += nodes.view(np.uint8).reshape(-1, len(STORED)) * share[:, None]
        return mixed.T / np.float32(255)


@cache
def load_template() -> Template:
    """Read the shipped template, once for each process."""
    source = files("grandrounds.data") / "anatomy" / "tissues.npz"
    with as_file(source) as path, np.load(path) as arrays:
        fractions, origin = arrays["fractions"], arrays["origin"]
        spacing = float(arrays["spacing"])
    cubes = sliding_window_view(fractions[..., WHITE], (3, 3, 3))
    white_around = cubes.min(axis=(3, 4, 5)) > 0.9 * 255
    places = (np.argwhere(white_around) + 1) * spacing + origin
    seen = np.abs(places[:, 0] - _MIDDLE[0]) < 24
    return Template(fractions.view(np.uint64)[..., 0], origin, spacing, places[seen])


@dataclass(frozen=True)
class PatientTraits:
    """The traits of one patient: width of the CSF spaces, fat of the scalp, and lesions.

    `lesions` is (lesion, 4): the centre in template mm, and the radius in mm.
    """

    csf: float
    fat: float
    lesions: Array


def draw_traits(streams: Streams) -> PatientTraits:
    """Draw a patient's traits."""
    build, lesions = streams("build"), streams("lesions")
    count = lesions.integers(0, MOST_LESIONS, endpoint=True)
    centres = lesions.choice(load_template().lesion_sites, count)
    radii = lesions.uniform(*LESION_RADIUS, count)
    return PatientTraits(
        csf=build.lognormal(0, CSF_SPREAD),
        fat=build.uniform(LEAST_FAT, 1),
        lesions=np.column_stack([centres, radii]).astype(np.float32),
    )


def tissue_fractions(
    streams: Streams,
    planes: NDArray[np.float64],
    size: tuple[int, int],
    spacing: tuple[float, float],
) -> Array:
    """Render a patient's tissues: (plane, tissue, height, width), in the order of `HEAD`.

    `planes` are in mm above the middle. Each pixel is the mean of 2 x 2 samples; the rest
    up to 1 is air. Anterior is up and the patient's left is on the right side of the picture.
    """
    height, width = size
    halves = (spacing[0] / 2, spacing[1] / 2)
    axes = (planes, centred(2 * height, halves[0]), centred(2 * width, halves[1]))
    places = deformed(streams("shape"), axes).reshape(3, -1)
    folds = streams("folds")
    csf, white = (np.exp(FOLDS * random_field(folds, axes, FOLD_WIDTH)).ravel() for _ in range(2))
    traits = draw_traits(streams)
    # An even number of rows, so that no pixel's samples fall into two blocks.
    block = max(1, BLOCK // (4 * width)) * 4 * width
    rendered: list[Array] = []
    for start in range(0, places.shape[1], block):
        part = slice(start, start + block)
        tissues = patient_tissues(traits, places[:, part], csf[part], white[part])
        rendered.append(mean_2x2(tissues.reshape(len(HEAD), -1, 2 * width)))
    stacked = np.concatenate(rendered, axis=1).reshape(len(HEAD), len(planes), height, width)
    return stacked.transpose(1, 0, 2, 3)


def centred(count: int, spacing: float) -> NDArray[np.float64]:
    """Return positions about 0, the highest first: images start at the front and at the right."""
    return ((count - 1) / 2 - np.arange(count, dtype=np.float64)) * spacing


def mean_2x2(samples: Array) -> Array:
    """Average 2 x 2 samples of the last two axes."""
    rows = samples[:, 0::2] + samples[:, 1::2]
    return np.asarray((rows[..., 0::2] + rows[..., 1::2]) / 4, np.float32)


def patient_tissues(traits: PatientTraits, places: Array, csf: Array, white: Array) -> Array:
    """Return a patient's tissues (tissue, place) at places (axis, place) in template mm.

    `csf` and `white` are the factors by which the patient's folds favour these two tissues.
    """
    prior = load_template().at(places)
    prior[FAT] *= traits.fat
    air = (1 - prior.sum(axis=0)).clip(0)
    prior[CSF] *= traits.csf
    tissues = np.zeros((len(HEAD), places.shape[1]), np.float32)
    tissues[: len(STORED)] = sharpened(prior)
    tissues[CSF] *= csf
    tissues[WHITE] *= white
    tissues /= tissues.sum(axis=0) + sharpened(air)
    tissues[LESION] = tissues[WHITE] * lesion_share(traits.lesions, places)
    tissues[WHITE] -= tissues[LESION]
    return tissues


def sharpened(prior: Array) -> Array:
    """Return the unnormalised softmax of sharpened logits."""
    return np.exp(SHARPNESS * np.log(prior + FLOOR))


def lesion_share(lesions: Array, places: Array) -> Array:
    """Return how much of each place lies within a lesion's ball, 0 to 1."""
    share = np.zeros(places.shape[1], np.float32)
    up, forward, right = places
    lowest, highest = up.min(), up.max()
    for z, y, x, radius in lesions:
        if lowest - z < radius + LESION_EDGE and z - highest < radius + LESION_EDGE:
            distance = np.sqrt((up - z) ** 2 + (forward - y) ** 2 + (right - x) ** 2)
            share = np.maximum(share, ((radius - distance) / LESION_EDGE + 0.5).clip(0, 1))
    return share


def deformed(rng: np.random.Generator, axes: Axes) -> Array:
    """Return where in the template a patient's places lie: (axis, plane, row, column) in mm."""
    up, forward, right = draw_affine(rng).T[:, :, None, None, None]
    planes, rows, columns = axes
    turned = up * planes[:, None, None] + forward * rows[:, None] + right * columns
    return (turned + _MIDDLE[:, None, None, None] + elastic(rng, axes)).astype(np.float32)


def draw_affine(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a head's pose and proportions: a (3, 3) matrix from patient to template."""
    scales = (1 + SCALE * rng.standard_normal(3)) * (1 + GLOBAL_SCALE * rng.standard_normal())
    matrix = np.diag(scales)
    for axis, angle in enumerate(ROTATION * rng.standard_normal(3)):
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = np.sin(angle), -np.sin(angle)
        matrix = (matrix[:, :, None] * turn).sum(axis=1)
    return matrix


def elastic(rng: np.random.Generator, axes: Axes) -> Array:
    """Draw a smooth displacement: (axis, plane, row, column) in mm."""
    planes, rows, columns = axes
    down, across = knots(rows), knots(columns)
    coarse = np.zeros((3, len(planes), len(down), len(across)), np.float32)
    for displacement, smoothness in ELASTIC:
        for axis in range(3):
            coarse[axis] += displacement * random_field(rng, (planes, down, across), smoothness)
    fine = linear_taps(rows, down[0], KNOTS).along(coarse, 2)
    return linear_taps(columns, across[0], KNOTS).along(fine, 3)


def knots(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the multiples of `KNOTS` from before the lowest position to past the highest."""
    first, last = np.floor(positions.min() / KNOTS), np.floor(positions.max() / KNOTS) + 1
    return np.arange(first, last + 1, dtype=np.float64) * KNOTS
