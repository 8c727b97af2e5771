"""An image that a network made says so wherever it can, and is never trained on or tested with.

A NIfTI volume has it in its name (BIDS' entity desc-synthetic), its sidecar and its header, a DICOM
file in its image type.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from grandrounds.core.errors import BadImage
from grandrounds.core.sentence import phrase
from grandrounds.data.acquisition import read_sidecar, sidecar_of
from grandrounds.data.header import read_text_of

SYNTHETIC_TEXT = "synthetic, not for diagnosis"  # in a header, and of a DICOM series
SYNTHETIC_KEY = "Synthetic"  # of a sidecar
SYNTHETIC_NAME = "desc-synthetic"
SYNTHETIC_WORD = "SYNTHETIC"  # in a DICOM file's image type


def synthetic_name(patient: str, session: str, contrast: str) -> str:
    """Return the name of a synthetic volume, which is none of a measured one."""
    parts = (patient, session, SYNTHETIC_NAME, contrast)
    return "_".join(part for part in parts if part) + ".nii.gz"


def synthetic_sign(volume: Path) -> str:
    """Say by what a volume shows that it is synthetic; empty where it is measured.

    A header that cannot be read shows nothing: whoever reads the voxels refuses it.
    """
    if SYNTHETIC_NAME in volume.name:
        return "its name"
    if _read_text(volume).startswith(SYNTHETIC_TEXT.encode()):
        return "its header"
    sidecar = sidecar_of(volume)
    return "its sidecar" if sidecar.exists() and _is_marked(read_sidecar(sidecar)) else ""


def _is_marked(sidecar: Mapping[str, object]) -> bool:
    return sidecar.get(SYNTHETIC_KEY) not in (None, False)


def _read_text(volume: Path) -> bytes:
    try:
        return read_text_of(volume)
    except (OSError, EOFError, ValueError):
        return b""


def check_measured(volumes: Iterable[Path]) -> None:
    """Refuse volumes that a network made. Raises `BadImage`."""
    for volume in volumes:
        if sign := synthetic_sign(volume):
            raise BadImage(
                f"{volume}: is synthetic, as {sign} says; only images that were measured may be "
                "used, so move it elsewhere.",
                safe=phrase("a volume is synthetic, and only measured ones may be used"),
            )
