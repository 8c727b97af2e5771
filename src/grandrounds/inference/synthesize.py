"""A trained model synthesises a contrast that was not measured from a volume of another.

The volume is NIfTI or a DICOM series; what is made lies on its own grid, and says what it is.
"""

import gzip
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grandrounds import __version__
from grandrounds.core.errors import BadImage, BadInput, BadStudy
from grandrounds.core.files import create_whole
from grandrounds.data.acquisition import sidecar_of
from grandrounds.data.elements import Elements
from grandrounds.data.measured import SYNTHETIC_KEY, SYNTHETIC_TEXT
from grandrounds.data.nifti import on_axes_of, read_grid, to_nifti
from grandrounds.data.prepare import PreparedVolumes, prepare_volumes
from grandrounds.data.profile import DataProfile, look_of
from grandrounds.data.resample import Pixels, in_plane, smooth
from grandrounds.data.session_files import SessionFiles
from grandrounds.inference.slices import SlicePredictor, Told, nobody_listens
from grandrounds.inference.source import SourceVolume, opened_source
from grandrounds.inference.trained_model import TrainedModel
from grandrounds.inference.uncertainty import SPREAD_MEANING, SpreadKind, spread_for
from grandrounds.study.file import fingerprint
from grandrounds.tasks.synthesis.examples import ContrastPair

COMPRESSED, _PLAIN = ".nii.gz", ".nii"
_SOME = 0.01  # of the brain or head, from where on it is said that it lies outside the window


@dataclass(frozen=True)
class SynthesisOptions:
    """What is asked for beside the contrast itself.

    `brain` is a mask of the input. `uncertainty` is a NIfTI file of how far predictions differ,
    over what `spread_by` says. `anyway` goes on where the model has not seen the like. `dicom`
    makes a series. `named` are texts for the sidecar.
    """

    brain: Path | None = None
    uncertainty: Path | None = None
    spread_by: SpreadKind = "views"
    anyway: bool = False
    dicom: bool = False
    named: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Synthetic:
    """A volume that was made: where it lies, and what whoever uses it must know."""

    path: Path
    pair: ContrastPair
    sidecar: Mapping[str, object]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Input:
    """The prepared slices of a source, and what the site's profile says of them."""

    source: SourceVolume
    prepared: PreparedVolumes
    objections: tuple[str, ...]
    unchecked: str

    @property
    def images(self) -> NDArray[np.float32]:
        return self.prepared.images[:, 0]


def synthesize_volume(
    trained: TrainedModel,
    pair: ContrastPair,
    source: Path,
    out: Path,
    options: SynthesisOptions = SynthesisOptions(),
    told: Told = nobody_listens,
) -> Synthetic:
    """Write the target contrast of a volume, on its own grid, and a sidecar that says what it is.

    The volume is prepared as the site's data are; with a `brain` mask, it is scaled by what is
    inside. Where the network reads how a volume was scanned, the source's sidecar says so; without
    one, and for the target, it is as the site usually scans. Values are in [0, 1]: 1 is 1.2 times
    the contrast's 99th percentile in the brain. Raises `BadInput`, also where the volume is unlike
    all that the model has seen.
    """
    predictor = SlicePredictor.of(trained, pair)
    _check_names(out, options)
    _check_modality(trained, predictor.pair, options)
    with ExitStack() as files:
        path = files.enter_context(create_whole(out))
        beside = files.enter_context(create_whole(sidecar_of(out)))
        apart = options.uncertainty and files.enter_context(create_whole(options.uncertainty))
        found = files.enter_context(opened_source(source))
        predictor = predictor.reading(found.volume)
        spread = spread_for(predictor, options.spread_by) if options.uncertainty else None
        given = _checked(_prepared(trained, predictor.pair, found, options.brain), options, trained)
        made = Synthetic(out, predictor.pair, _sidecar(trained, predictor.pair, given, options))
        made = replace(made, notes=_notes(given))
        elements = trained.study.elements
        _write(predictor(given.images, told), path, given, made, elements, options.dicom)
        if spread and apart:
            away = _on_grid_of(found.volume, spread.of(given.images), elements)
            _write_nifti(away, apart, found.volume)
        beside.write_text(json.dumps(made.sidecar, indent=2) + "\n", "utf-8")
    return made


def _check_names(out: Path, options: SynthesisOptions) -> None:
    named_nifti = out.name.endswith((COMPRESSED, _PLAIN))
    if options.dicom and named_nifti:
        raise BadInput(f"{out}: is the name of a NIfTI volume; --dicom makes a new folder of files")
    if not options.dicom and not named_nifti:
        raise BadInput(f"{out}: is no name of a NIfTI volume; it must end with .nii.gz or .nii")
    other = options.uncertainty
    if other and not other.name.endswith((COMPRESSED, _PLAIN)):
        raise BadInput(f"{other}: is no name of a NIfTI volume; it must end with .nii.gz or .nii")
    if other and other.absolute() in (out.absolute(), sidecar_of(out).absolute()):
        raise BadInput(f"{other}: image and uncertainty are two files; give each its own name")


def _check_modality(trained: TrainedModel, pair: ContrastPair, options: SynthesisOptions) -> None:
    """Refuse a series of what has a unit: files are written as of MR, whose values have none."""
    if options.dicom and pair.target in (trained.study.elements.intensity or {}):
        raise BadStudy(
            f"{pair.target} has values in a unit (elements.intensity), as CT has; --dicom writes "
            "series of MR alone; leave it out, and a NIfTI volume is made"
        )


def _prepared(
    trained: TrainedModel, pair: ContrastPair, source: SourceVolume, brain: Path | None
) -> _Input:
    elements, profile = trained.study.elements, trained.profile
    masks = {"brain": brain} if brain else {}
    prepared = prepare_volumes(
        SessionFiles("input", "", {pair.source: source.volume}, masks), elements
    )
    unchecked = _unchecked(profile, pair.source)
    found = _objections(profile, pair.source, prepared, elements) if profile else ()
    named = _misnamed(trained, pair.source, source.looks_like)
    return _Input(source, prepared, (*named, *found), unchecked)


def _misnamed(trained: TrainedModel, contrast: str, looks_like: str) -> tuple[str, ...]:
    if looks_like not in trained.study.elements.contrasts or looks_like == contrast:
        return ()
    return (
        f"its DICOM header has the acquisition of a {looks_like}, and it was given as {contrast}",
    )


def _objections(
    profile: DataProfile, contrast: str, prepared: PreparedVolumes, elements: Elements
) -> tuple[str, ...]:
    look = look_of(prepared.images[:, 0], elements.spacing)
    if look is None or contrast not in profile.contrasts:
        return ()
    return profile.objections(contrast, look, prepared.spacing)


def _unchecked(profile: DataProfile | None, contrast: str) -> str:
    if profile is None:
        return (
            "not checked whether the model has seen the like: the run holds no profile of the "
            "site's training data"
        )
    if contrast not in profile.contrasts:
        return (
            "not checked whether the model has seen the like: too few training patients of the "
            f"site have {contrast} for a profile"
        )
    return ""


def _checked(given: _Input, options: SynthesisOptions, trained: TrainedModel) -> _Input:
    """Refuse an input that is unlike all that the model has seen. Raises `BadImage`."""
    if given.objections and not options.anyway:
        raise BadImage(
            f"{given.source.given}: lies outside what the model of site '{trained.site}' has seen: "
            f"{'; '.join(given.objections)}. With --anyway it is made all the same, and its "
            "sidecar says so."
        )
    return given


def _notes(given: _Input) -> tuple[str, ...]:
    share = given.prepared.outside
    cut = f"{share:.0%} of what it shows lies outside the study's window, and is 0"
    outside = (f"made all the same, though {each}" for each in given.objections)
    told = (cut if share >= _SOME else "", given.unchecked, *outside, *given.source.remarks)
    return tuple(note for note in told if note)


def _sidecar(
    trained: TrainedModel, pair: ContrastPair, given: _Input, options: SynthesisOptions
) -> Mapping[str, object]:
    """Return what is said beside a synthetic volume, in BIDS' words where it has them."""
    known: dict[str, object] = {
        SYNTHETIC_KEY: True,
        "Description": f"{pair.target} from {pair.source}: {SYNTHETIC_TEXT}",
        "GeneratedBy": [{"Name": "grandrounds", "Version": __version__}],
        "Contrast": pair.target,
        "SourceContrast": pair.source,
        "SourceDigest": given.source.digest,
        "ModelDigest": trained.digest,
        "StudyDigest": fingerprint(trained.study),
        "Site": trained.site,
        "Round": trained.round,
        "Scale": "1 is 1.2 times the contrast's 99th percentile in the brain",
        "ShareOutsideWindow": round(given.prepared.outside, 4),
        "OutsideOfTraining": list(given.objections),
    }
    if given.unchecked:
        known["NotChecked"] = given.unchecked
    if options.uncertainty:
        known["Uncertainty"] = {"By": options.spread_by, "Meaning": SPREAD_MEANING}
    return known | dict(options.named or {})


def _write(
    made: NDArray[np.float32],
    path: Path,
    given: _Input,
    about: Synthetic,
    elements: Elements,
    dicom: bool,
) -> None:
    volume = _on_grid_of(given.source.volume, made, elements)
    if not dicom:
        _write_nifti(volume, path, given.source.volume)
        return
    if given.source.series is None:
        raise BadInput(
            f"{given.source.given}: --dicom needs a DICOM series to start from, whose patient and "
            "study the new one belongs to; give its folder, or leave --dicom out"
        )
    from grandrounds.data.dicom.write import SyntheticOrigin, write_derived

    said = SyntheticOrigin(about.pair.source, about.pair.target, _provenance(about.sidecar))
    write_derived(on_axes_of(volume, given.source.volume), given.source.series, said, path)


def _provenance(sidecar: Mapping[str, object]) -> tuple[str, ...]:
    model, study = str(sidecar["ModelDigest"])[:16], str(sidecar["StudyDigest"])[:16]
    outside = sidecar["OutsideOfTraining"]
    seen = ("The source lies outside of what the model has seen.",) if outside else ()
    return (f"Model {model}, study {study}, round {sidecar['Round']}.", *seen)


def _write_nifti(volume: NDArray[np.float32], path: Path, like: Path) -> None:
    content = to_nifti(volume, like, text=SYNTHETIC_TEXT)
    compressed = path.name.endswith(COMPRESSED)
    path.write_bytes(gzip.compress(content, 1, mtime=0) if compressed else content)


def _on_grid_of(source: Path, made: NDArray[np.float32], elements: Elements) -> NDArray[np.float32]:
    """Resample prepared slices to the rows and columns of a volume; what they left out is 0."""
    grid = read_grid(source)
    rows, columns = zip(elements.spacing, grid.shape[1:], grid.spacing[1:], strict=True)
    return in_plane(made, Pixels(*rows), Pixels(*columns), by=smooth).clip(0, 1)
