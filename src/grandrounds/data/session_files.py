"""A site's folder is flat, and the names of its files say whose and what each volume is."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grandrounds.core.errors import BadSite
from grandrounds.core.sentence import Reason, phrase
from grandrounds.data.measured import SYNTHETIC_NAME

NAME = re.compile(
    r"(?P<patient>sub-[A-Za-z0-9]+)(_(?P<session>ses-[A-Za-z0-9]+))?"
    r"_(?P<kind>[A-Za-z0-9]+)\.nii(\.gz)?"
)
RULE = (
    "sub-ID[_ses-ID]_CONTRAST.nii.gz (or .nii), a mask's with brainmask or lesionmask as CONTRAST"
)
LISTED = 5  # names spelled out in one message
MASKS = ("brainmask", "lesionmask")
PREPARATION = ".preparation"  # a folder in one of prepared volumes, with what they were made from
UNFINISHED = f"{PREPARATION}/unfinished"  # is there until all of them are made
# What people call an outline: such a volume is never taken for a contrast.
_OUTLINE = re.compile(
    r"(?i).*mask.*|.*(seg|segmentation|labels?|labelmap|roi|lesions?|wmh|delineation|contour)"
    r"|brain|tumou?r|gtv|stroke"
)
_NIFTI = (".nii", ".nii.gz")
# Volumes of other formats, or compressed otherwise: their patients would be missed without a word.
_OTHER_VOLUMES = (
    *(".img", ".hdr", ".mgz", ".mgh", ".mnc", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm"),
    *(".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip", ".nii.gz.part", ".nia", ".img.gz"),
)


class NoSession(BadSite):
    """A site has nobody of whom a study could learn."""


@dataclass(frozen=True)
class SessionFiles:
    """The files of one session: contrast to path, and "brain" or "lesion" to the mask's path."""

    patient: str
    session: str
    contrasts: Mapping[str, Path]
    masks: Mapping[str, Path] = field(default_factory=dict[str, Path])


def is_outline(kind: str) -> bool:
    """Tell whether a name is one of a mask or of labels, and so none of a contrast."""
    return bool(_OUTLINE.fullmatch(kind))


def find_sessions(folder: Path) -> tuple[SessionFiles, ...]:
    """List the sessions of a site's folder, sorted; only .nii and .nii.gz files are read.

    Raises `BadSite` where the folder cannot be read or holds no volume, where a volume's name does
    not follow the rule, where a volume occurs twice or is of another format, and where volumes lie
    in folders below.
    """
    paths = _volumes(folder)
    matches = {path: NAME.fullmatch(path.name) for path in paths}
    synthetic = [path.name for path in paths if SYNTHETIC_NAME in path.name]
    if synthetic:
        raise BadSite(
            f"{folder}: {listed(synthetic)}: synthetic, so none of a site's data; move to another "
            "folder what was not measured.",
            safe=phrase("{number} volumes are synthetic", number=len(synthetic)),
        )
    misnamed = [p.name for p, match in matches.items() if not (match and _is_known(match["kind"]))]
    if misnamed:
        raise BadSite(
            f"{folder}: {listed(misnamed)} must be named {RULE}.",
            safe=phrase("{number} volumes are not named by the rule", number=len(misnamed)),
        )
    kinds: dict[tuple[str, str], dict[str, Path]] = {}
    for path, match in matches.items():
        assert match
        volumes = kinds.setdefault((match["patient"], match["session"] or ""), {})
        if duplicate := volumes.get(match["kind"]):
            raise BadSite(
                f"{folder}: {duplicate.name} and {path.name} are one volume; keep only one.",
                safe=phrase("one volume lies there twice, as .nii and .nii.gz"),
            )
        volumes[match["kind"]] = path
    check_cases(str(folder), sorted({patient for patient, _ in kinds}))
    return tuple(_session(*key, volumes=kinds[key]) for key in sorted(kinds))


def check_cases(where: str, patients: Sequence[str]) -> None:
    """Refuse IDs that differ in case alone: they are one patient, who may train and be tested."""
    known = dict[str, str]()
    for patient in patients:
        other = known.setdefault(patient.lower(), patient)
        if other != patient:
            raise BadSite(
                f"{where}: the patients {other} and {patient} differ in case alone; one patient "
                "must have one ID.",
                safe=phrase("the IDs of two patients differ in case alone"),
            )


def listed(names: Sequence[str]) -> str:
    """Return some names as one text; of many, the first few and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _is_known(kind: str) -> bool:
    return kind in MASKS or not is_outline(kind)


def _volumes(folder: Path) -> list[Path]:
    try:
        # macOS leaves a file ._NAME beside a volume on a foreign disk: it holds no image.
        paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith("._")]
    except OSError as error:
        raise BadSite(
            f"{folder}: {error.strerror}; a site's data must be a readable folder "
            "of NIfTI volumes.",
            safe=phrase("its folder of data cannot be read ({why})", why=Reason.of(error)),
        ) from None
    _check_finished(folder)
    _check_formats(folder, paths)
    _check_flat(folder, paths)
    volumes = [path for path in paths if _ends(path.name, _NIFTI)]
    if not volumes:
        raise NoSession(
            f"{folder}: no NIfTI volume lies in this folder; it must hold {RULE}.",
            safe=phrase("its folder of data holds no NIfTI volume"),
        )
    return volumes


def _check_finished(folder: Path) -> None:
    """Refuse a folder whose preparation was stopped: some of its patients are not there yet."""
    if (folder / UNFINISHED).exists():
        raise BadSite(
            f"{folder}: its preparation was stopped before its end; give `grandrounds site "
            "prepare` again, which goes on from there.",
            safe=phrase("the preparation of its volumes is not finished"),
        )


def _check_formats(folder: Path, paths: Sequence[Path]) -> None:
    others = [path.name for path in paths if _ends(path.name, _OTHER_VOLUMES)]
    if others:
        raise BadSite(
            f"{folder}: {listed(others)}: no NIfTI volume by its ending; convert it to .nii.gz or "
            "move it elsewhere, for nothing in the folder is left out without a word.",
            safe=phrase("{number} volumes are of another format than NIfTI", number=len(others)),
        )


def _check_flat(folder: Path, paths: Sequence[Path]) -> None:
    """Refuse volumes in folders below; hidden folders, such as .git, play no part."""
    deep = [
        str((Path(top) / name).relative_to(folder))
        for path in paths
        if path.is_dir() and not path.name.startswith(".") and not _ends(path.name, _NIFTI)
        for top, _, names in os.walk(path)
        for name in sorted(names)
        if _ends(name, (*_NIFTI, *_OTHER_VOLUMES)) and not name.startswith("._")
    ]
    if deep:
        raise BadSite(
            f"{folder}: {listed(sorted(deep))}: the folder must be flat, all its volumes side by "
            "side without subfolders; move these, or link to them.",
            safe=phrase("{number} volumes lie in subfolders", number=len(deep)),
        )


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return name.lower().endswith(endings)


def _session(patient: str, session: str, *, volumes: Mapping[str, Path]) -> SessionFiles:
    return SessionFiles(
        patient,
        session,
        contrasts={kind: path for kind, path in volumes.items() if kind not in MASKS},
        masks={kind.removesuffix("mask"): volumes[kind] for kind in volumes if kind in MASKS},
    )
