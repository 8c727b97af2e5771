"""A folder is looked at to tell what it is: a BIDS tree, other NIfTI volumes, or DICOM files."""

import os
import re
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from grandrounds.core.errors import BadSite
from grandrounds.data.acquisition import ENDINGS, read_sidecar, sidecar_of
from grandrounds.data.session_files import MASKS, NAME, RULE, is_outline

FolderKind: TypeAlias = Literal["a BIDS tree", "NIfTI volumes", "DICOM files"]
MOST_FILES = 5_000_000
_NOT_RAW = ("derivatives", "sourcedata", "code", "stimuli")
_WITHOUT_GREY = (
    "T1map",
    "T2map",
    "T2starmap",
    "R1map",
    "R2map",
    "R2starmap",
    "M0map",
    "defacemask",
)
# What people call contrasts in the names of files, in lower case, to what they are called here.
_CONTRASTS: Mapping[str, str] = {
    **dict.fromkeys(("t1", "t1w"), "T1w"),
    **dict.fromkeys(("t2", "t2w"), "T2w"),
    **dict.fromkeys(("pd", "pdw"), "PDw"),
    **dict.fromkeys(("flair", "t2flair"), "FLAIR"),
    **dict.fromkeys(("t1ce", "t1c", "t1gd", "t1wgd", "t1post"), "T1wGd"),
}
_DICOM = b"DICM"  # after 128 bytes


@dataclass(frozen=True)
class VolumeFile:
    """A NIfTI volume of a tree: whose, of which session, which contrast and why, or why none."""

    path: Path
    patient: str
    session: str
    contrast: str
    why: str = ""
    refusal: str = ""


@dataclass(frozen=True)
class Tree:
    """The volumes of a folder, and what was left out, in counts that are said."""

    volumes: tuple[VolumeFile, ...]
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])


def kind_of(folder: Path) -> FolderKind:
    """Tell what lies in a folder, by looking. Raises `BadSite`."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except OSError as error:
        raise BadSite(f"{folder}: {error.strerror}; archive.folder must be readable") from None
    nifti, other = 0, list[Path]()
    for path in files_below(folder):
        nifti += path.name.endswith(ENDINGS)
        if not path.name.endswith((*ENDINGS, ".json", ".tsv", ".bval", ".bvec", ".md", ".txt")):
            other.append(path)
    if not nifti:
        if not other:
            raise BadSite(
                f"{folder}: holds no file that could be an image; is it the right folder?"
            )
        return "DICOM files"
    if "dataset_description.json" in names or any(_is_bids(folder / name) for name in names):
        return "a BIDS tree"
    if any(_begins_as_dicom(path) for path in other):
        raise BadSite(
            f"{folder}: holds DICOM files and NIfTI volumes; give each a folder and a site file of "
            "its own, with the same archive.private, so that patients keep their names"
        )
    return "NIfTI volumes"


def files_below(folder: Path) -> Generator[Path]:
    """Yield all files below a folder but hidden ones; a link to a folder is not followed."""
    seen = 0
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            seen += 1
            if seen > MOST_FILES:
                raise BadSite(f"{folder}: has more than {MOST_FILES} files; take it in parts")
            if not name.startswith("."):
                yield Path(top) / name


def _is_bids(path: Path) -> bool:
    """Tell whether a folder is a subject's: sub-ID with images by their data type below it."""
    if not path.name.startswith("sub-") or not path.is_dir():
        return False
    return any(path.glob("anat/*")) or any(path.glob("ses-*/anat/*"))


def _begins_as_dicom(path: Path) -> bool:
    if not path.is_file():  # a pipe would wait for a writer
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == _DICOM
    except OSError:
        return False


def bids_volumes(folder: Path) -> Tree:
    """List the anatomical volumes of a BIDS tree; all else is counted as left out."""
    found, left_out = list[VolumeFile](), Counter[str]()
    for path in _niftis(folder):
        parts = path.relative_to(folder).parts
        if parts[0] in _NOT_RAW:
            left_out[f"volumes of {parts[0]}"] += 1
        elif len(parts) < 3 or parts[-2] != "anat":
            left_out[f"volumes of {parts[-2] if len(parts) > 1 else 'no data type'}"] += 1
        elif is_outline(_suffix(path)) or _suffix(path) in _WITHOUT_GREY:
            left_out["masks and maps"] += 1
        else:
            found.append(_of_bids(path))
    return Tree(tuple(found), left_out)


def _of_bids(path: Path) -> VolumeFile:
    return _regular(_named_by_bids(path))


def _regular(volume: VolumeFile) -> VolumeFile:
    """Refuse what is no file: a pipe, or a link to a file that was not fetched."""
    if volume.path.is_file():
        return volume
    return replace(volume, contrast="", refusal="is no file, or a link that leads nowhere")


def _named_by_bids(path: Path) -> VolumeFile:
    entities, suffix = entities_of(path)
    patient, session = entities.get("sub", ""), entities.get("ses", "")
    if not patient or not (suffix.isascii() and suffix.isalnum()):
        return VolumeFile(path, patient, session, "", refusal="is not named by BIDS")
    if entities.get("part", "mag") != "mag":
        return VolumeFile(path, patient, session, "", refusal="is no magnitude image (part)")
    agent = suffix == "T1w" and "ce" in entities
    contrast = f"{suffix}Gd" if agent else suffix
    why = "BIDS suffix" + (" and the entity ce" if agent else "")
    return VolumeFile(path, patient, session, contrast, why)


def plain_volumes(folder: Path) -> Tree:
    """List the volumes of a folder without BIDS: named by the house's rule, or by their folders.

    A volume below a patient's folder (and one of a session) is named by the contrast in its name.
    """
    found, left_out = list[VolumeFile](), Counter[str]()
    for path in _niftis(folder):
        match, parts = NAME.fullmatch(path.name), path.relative_to(folder).parts
        if match and (match["kind"] in MASKS or not is_outline(match["kind"])):
            patient = match["patient"].removeprefix("sub-")
            session = (match["session"] or "").removeprefix("ses-")
            found.append(VolumeFile(path, patient, session, match["kind"], "the file's name"))
        elif is_outline(_suffix(path)):
            left_out["masks that are not named by the rule"] += 1
        elif len(parts) == 1:
            found.append(VolumeFile(path, "", "", "", refusal=f"is not named {RULE}"))
        else:
            found.append(_by_folder(path, parts))
    return Tree(tuple(_regular(volume) for volume in found), left_out)


def _by_folder(path: Path, parts: Sequence[str]) -> VolumeFile:
    patient = parts[0].removeprefix("sub-")
    session = "/".join(parts[1:-1])
    words = re.split(r"[^a-z0-9]+", stem_of(path).lower())
    contrasts = {_CONTRASTS[word] for word in words if word in _CONTRASTS}
    if contrasts == {"T2w", "FLAIR"}:
        contrasts = {"FLAIR"}  # a FLAIR is weighted by T2, and often called so
    if len(contrasts) != 1:
        which = "two contrasts" if contrasts else "no contrast"
        return VolumeFile(path, patient, session, "", refusal=f"has a name that tells {which}")
    return VolumeFile(path, patient, session, contrasts.pop(), "the file's name")


def _niftis(folder: Path) -> Generator[Path]:
    return (path for path in files_below(folder) if path.name.endswith(ENDINGS))


def stem_of(path: Path) -> str:
    """Return a volume's name without .nii or .nii.gz."""
    return sidecar_of(path).name.removesuffix(".json")


def entities_of(path: Path) -> tuple[Mapping[str, str], str]:
    """Return the entities of a BIDS name (sub, ses, acq, ...), and its suffix."""
    *words, suffix = stem_of(path).split("_")
    pairs = (word.partition("-") for word in words)
    return {key: value for key, dash, value in pairs if dash}, suffix


def _suffix(path: Path) -> str:
    return entities_of(path)[1]


def inherited_sidecar(path: Path, root: Path) -> Mapping[str, object]:
    """Return what the sidecars of a BIDS volume say together; the nearer one wins.

    One applies if it has the same suffix and no entity of another value (BIDS' inheritance
    principle). Raises `BadImage` where one is no JSON object.
    """
    entities, suffix = entities_of(path)
    values: dict[str, object] = {}
    folders = [path.parent, *path.parent.parents]
    for folder in reversed(folders[: folders.index(root) + 1]):
        for sidecar in _sidecars(folder):
            named, of = entities_of(sidecar.with_suffix(".nii"))
            if of == suffix and named.items() <= entities.items():
                values |= read_sidecar(sidecar)
    return values


def _sidecars(folder: Path) -> tuple[Path, ...]:
    """Return the sidecars of a folder, those of fewer entities first."""
    return tuple(sorted(folder.glob("*.json"), key=lambda path: (path.name.count("_"), path.name)))


def by_number(text: str) -> str:
    """Return what puts names in the order in which people count: ses-2 before ses-10."""
    return re.sub(r"[0-9]+", lambda digits: digits[0].zfill(20), text)
