"""Simulated sites each have a scanner and patients, so that a study needs no data to run."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import BadStudy
from grandrounds.core.seeds import seed_for
from grandrounds.data.cohort import HEADROOM, Session, SplitName
from grandrounds.data.elements import Elements
from grandrounds.data.simulation.anatomy import (
    BRAIN,
    HEAD,
    LESION,
    Streams,
    centred,
    tissue_fractions,
)
from grandrounds.data.simulation.fields import Array, Axes, blurred, random_field
from grandrounds.data.simulation.signal import FIELDS, TISSUES, Properties, Sequence

SIMULATOR_VERSION = 2  # part of every cache key: raise it whenever voxels or masks would change
SLAB, SHIFT = 24.0, 2.5  # mm above and below the middle; mm by which a patient's slab moves
BIAS_RADIUS = 80.0  # mm; within it the bias is at most as large as the scanner says
TEXTURE, TEXTURE_WIDTH = 0.025, 2.0  # share of the signal, mm
JITTER = (0.02, 0.05, 0.05)  # relative standard deviations of proton density, T1 and T2


def default_protocol() -> Mapping[str, Sequence]:
    """Return the sequences of four contrasts, as usual at 1.5 tesla."""
    return {
        "T1w": Sequence("spin-echo", tr=500.0, te=12.0),
        "T2w": Sequence("spin-echo", tr=4500.0, te=100.0),
        "PDw": Sequence("spin-echo", tr=3000.0, te=15.0),
        "FLAIR": Sequence("inversion-recovery", tr=9000.0, te=110.0, ti=2500.0),
    }


@dataclass(frozen=True)
class Scanner:
    """A site's scanner: its field in tesla, its flaws, and a sequence for each contrast it takes.

    `snr` is the mean signal of the brain over the standard deviation of the noise, `bias` the
    largest logarithm of the coil's shading within 80 mm of the middle, `blur` the standard
    deviation of a Gaussian in pixels. Raises `BadStudy`.
    """

    field: float = 1.5
    snr: float = 28.0
    bias: float = 0.2
    blur: float = 0.55
    protocol: Mapping[str, Sequence] = dataclasses.field(default_factory=default_protocol)

    def __post_init__(self) -> None:
        """Check the values, as types do not limit them."""
        low, high = FIELDS
        if not low <= self.field <= high:
            raise BadStudy(
                f"a scanner has field = {self.field:g}; the tissue table holds "
                f"from {low:g} to {high:g} tesla."
            )
        if not self.snr > 0:
            raise BadStudy(f"a scanner has snr = {self.snr:g}; it must be above 0.")
        for name, value in (("bias", self.bias), ("blur", self.blur)):
            if not value >= 0:
                raise BadStudy(f"a scanner has {name} = {value:g}; it must be 0 or more.")

    def sequence(self, contrast: str, *, site: str) -> Sequence:
        """Return a contrast's sequence; raises `BadStudy`, naming the site, if there is none."""
        if contrast not in self.protocol:
            raise BadStudy(
                f"site '{site}': scanner.protocol has no sequence for contrast '{contrast}' "
                f"(it has {', '.join(self.protocol) or 'none'}); "
                "it must have one for each of the study's contrasts."
            )
        return self.protocol[contrast]


@dataclass(frozen=True)
class Patients:
    """How many patients a simulated site has in each split."""

    train: int
    validation: int
    test: int


def patient_labels(patients: Patients) -> Mapping[SplitName, tuple[str, ...]]:
    """Return a site's patients, numbered through the splits: sub-001, sub-002, ... ."""
    labels = [f"sub-{number:03d}" for number in range(1, sum(dataclasses.astuple(patients)) + 1)]
    test = patients.train + patients.validation
    return {
        "train": tuple(labels[: patients.train]),
        "validation": tuple(labels[patients.train : test]),
        "test": tuple(labels[test:]),
    }


def simulate_session(
    seed: int,
    site: str,
    patient: str,
    scanner: Scanner,
    elements: Elements,
    *,
    slices: int,
) -> Session:
    """Simulate a patient's session: axial slices, and exact masks of the brain and its tissues.

    The same seed, site and patient give the same session, whatever else was simulated before. Each
    contrast is divided by 1.2 times its 99th percentile inside the brain and clipped to [0, 1].
    Raises `BadStudy` where the scanner's protocol lacks one of the study's contrasts.
    """
    sequences = [scanner.sequence(contrast, site=site) for contrast in elements.contrasts]
    streams = partial(_stream, seed, site, patient)
    axes = _axes(streams, elements, slices)
    tissues = tissue_fractions(streams, axes[0], elements.size, elements.spacing)
    brain = tissues[:, BRAIN].sum(axis=1) >= 0.5
    properties = draw_properties(streams("tissues"), scanner.field)
    bias = np.exp(scanner.bias * bias_shape(streams("bias"), axes)).astype(np.float32)
    images = np.empty((slices, len(sequences), *elements.size), np.float32)
    for index, (contrast, sequence) in enumerate(zip(elements.contrasts, sequences, strict=True)):
        signal = bias * signal_of(tissues, properties, sequence)
        signal *= 1 + TEXTURE * random_field(streams(f"texture {contrast}"), axes, TEXTURE_WIDTH)
        image = acquired(streams(f"noise {contrast}"), signal, brain, scanner)
        images[:, index] = (image / (HEADROOM * np.percentile(image[brain], 99))).clip(0, 1)
    masks = {"brain": brain, "lesion": tissues[:, LESION] >= 0.5, **tissue_masks(tissues)}
    return Session(
        patient,
        "",
        elements.contrasts,
        images,
        {name: mask.astype(np.uint8) for name, mask in masks.items()},
        spacing=(2 * SLAB / max(slices - 1, 1), *elements.spacing),
    )


def tissue_masks(tissues: Array) -> Mapping[str, NDArray[np.bool_]]:
    """Return masks of where csf, grey (with deep grey) and white matter have the largest share.

    `tissues` is (plane, tissue, height, width) in the order of `HEAD`; the rest up to 1 is air.
    """
    shares = np.concatenate([tissues, 1 - tissues.sum(axis=1, keepdims=True)], axis=1)
    deep, grey = HEAD.index("deep grey"), HEAD.index("grey")
    shares[:, grey] += shares[:, deep]
    shares[:, deep] = 0
    largest = shares.argmax(axis=1)
    return {name: largest == HEAD.index(name) for name in ("csf", "grey", "white")}


def _stream(seed: int, site: str, patient: str, purpose: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed_for(seed, site, patient, purpose)))


def _axes(streams: Streams, elements: Elements, slices: int) -> Axes:
    """Place the slices and pixels in mm from the middle of the head; one slice shows the middle."""
    rows, columns = map(centred, elements.size, elements.spacing)
    if slices == 1:
        return np.zeros(1), rows, columns
    shift = streams("planes").uniform(-SHIFT, SHIFT)
    return np.linspace(-SLAB, SLAB, slices) + shift, rows, columns


def draw_properties(rng: np.random.Generator, field: float) -> tuple[Properties, ...]:
    """Draw a patient's tissues about the table's, in the order of `HEAD`, for all contrasts."""
    return tuple(
        TISSUES[tissue].at(field).scaled(*(1 + JITTER * rng.standard_normal(3))) for tissue in HEAD
    )


def signal_of(tissues: Array, properties: tuple[Properties, ...], sequence: Sequence) -> Array:
    """Mix the tissues' signals: (plane, tissue, height, width) to (plane, height, width)."""
    signals = np.array([sequence.signal(tissue) for tissue in properties], np.float32)
    return np.einsum("pthw,t->phw", tissues, signals)


def bias_shape(rng: np.random.Generator, axes: Axes) -> NDArray[np.float64]:
    """Draw one coil's shading: a second-order polynomial, in [-1, 1] over the brain."""
    coefficients = rng.standard_normal(9)
    grid = np.linspace(-BIAS_RADIUS, BIAS_RADIUS, 9)
    slab = grid[np.abs(grid) <= SLAB + 2 * SHIFT]
    largest = np.abs(_polynomial(coefficients, (slab, grid, grid))).max()
    return _polynomial(coefficients, axes) / largest


def _polynomial(coefficients: NDArray[np.float64], axes: Axes) -> NDArray[np.float64]:
    planes, rows, columns = (positions / BIAS_RADIUS for positions in axes)
    z, y, x = planes[:, None, None], rows[:, None], columns
    terms = (z, y, x, z * z, y * y, x * x, z * y, z * x, y * x)
    total = np.zeros((len(planes), len(rows), len(columns)))
    for coefficient, term in zip(coefficients, terms, strict=True):
        total += coefficient * term
    return total


def acquired(
    rng: np.random.Generator, signal: Array, brain: NDArray[np.bool_], scanner: Scanner
) -> Array:
    """Blur within the plane and add Rician noise: (plane, height, width)."""
    clean = blurred(signal, scanner.blur)
    deviation = clean[brain].mean() / np.float32(scanner.snr)
    real, imaginary = rng.standard_normal((2, *signal.shape), np.float32) * deviation
    return np.hypot(clean + real, imaginary)
