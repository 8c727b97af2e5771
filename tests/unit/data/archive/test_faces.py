"""Whether a volume probably shows a face is told by the head's outline."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grandrounds.data.archive.faces import shows_face
from grandrounds.data.nifti import read_grid, read_voxels

SPACING = (3.0, 2.0, 2.0)


def head(*, nose: bool = True, skull: bool = True, below: float = 150.0) -> NDArray[np.float32]:
    """A head of 150 mm and a neck, anterior first, in slices from the feet up."""
    number = int(below / 3)
    down, back, side = np.meshgrid(
        (number - np.arange(number)) * 3.0, np.arange(110) * 2.0, np.arange(90) * 2.0, indexing="ij"
    )
    skull_or_brain = 90.0 if skull else 70.0
    ball = (
        (down - 80) ** 2 / 80**2 + (back - 120) ** 2 / skull_or_brain**2 + (side - 90) ** 2 / 75**2
    )
    inside = ball < 1
    if nose:
        face = (down > 75) & (down < 150) & (back > 25) & (back < 130) & (abs(side - 90) < 40)
        inside |= face
    return np.where(inside, 100, 2).astype(np.float32)


def test_a_whole_head_shows_a_face():
    assert shows_face(head(), SPACING)


def test_a_head_whose_face_was_cut_away_shows_none():
    cut = head(nose=False)
    cut[:25, :60] = 2  # what lies in front, below the forehead
    assert not shows_face(cut, SPACING)


def test_a_slab_through_the_brain_shows_none():
    assert not shows_face(head()[-25:], SPACING)


def test_an_empty_volume_shows_none():
    assert not shows_face(np.zeros((5, 6, 7), np.float32), SPACING)


def test_real_heads_without_a_face_or_a_skull_show_none(real_data: Path):
    paths = sorted((real_data / "mri").glob("site-*/*_T1w.nii.gz"))[2::2]
    assert len(paths) == 3
    found = {path.name: shows_face(read_voxels(path), read_grid(path).spacing) for path in paths}
    assert not [name for name, face in found.items() if face]
