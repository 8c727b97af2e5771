"""Hospitals with small volumes, sidecars and a table of patients, to be asked for statistics."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

STUDY = """
name = "two-hospitals"
rounds = 2

[elements]
contrasts = ["T1w", "FLAIR"]
size = [32, 32]
spacing = [4.0, 4.0]
field_strengths = [3.0]
spacing_through = [1.0, 6.0]
orientation = "axial"
age = [18, 90]
minimum = { patients = 10, "T1w->FLAIR" = 10 }

[task]
kind = "synthesis"
model = "small"
width = 8
blocks = 2
latent = 16
critic_width = 8
critic_layers = 2

[training]
threads = 1

[method]
kind = "fedavg"

[[site]]
name = "alder"
tasks = ["T1w->FLAIR"]

[[site]]
name = "birch"
tasks = ["T1w->FLAIR"]
"""


SIDECAR = {"MagneticFieldStrength": 3, "RepetitionTime": 2.0, "EchoTime": 0.003}


@dataclass(frozen=True)
class Hospital:
    """A hospital whose patients are alike; `odd` are sidecars of single patients, by number."""

    name: str
    patients: int = 12
    flair: int = 12  # patients who have it
    thickness: float = 5.0
    gain: float = 1.0
    sidecar: Mapping[str, object] = field(default_factory=lambda: SIDECAR)
    odd: Mapping[int, Mapping[str, object]] = field(default_factory=dict[int, Mapping[str, object]])
    first: int = 0

    def write(self, folder: Path) -> Path:
        """Write the hospital's files, and return the path of its site file."""
        data = folder / self.name
        data.mkdir(parents=True)
        rows = ["participant_id\tage"]
        for number in range(self.first, self.first + self.patients):
            who = f"sub-{self.name}{number:03d}"
            rows.append(f"{who}\t{30 + number}")
            contrasts = ("T1w", "FLAIR") if number - self.first < self.flair else ("T1w",)
            for contrast in contrasts:
                self._save(data / f"{who}_{contrast}.nii.gz", number, contrast)
                said = {**self.sidecar, **self.odd.get(number, {})}
                (data / f"{who}_{contrast}.json").write_text(json.dumps(said))
        if self.patients:
            (data / "participants.tsv").write_text("\n".join(rows) + "\n")
        path = folder / f"{self.name}.toml"
        path.write_text(f'name = "{self.name}"\ndata = "{self.name}"\ncache = "cache"\n')
        return path

    def _save(self, path: Path, number: int, contrast: str) -> None:
        rng = np.random.default_rng([number, len(contrast)])
        x, y, z = np.indices((16, 16, 6)) - np.array([7.5, 7.5, 2.5])[:, None, None, None]
        inside = (x / 6) ** 2 + (y / 6) ** 2 + (z / 4) ** 2 < 1
        grey = 100 * inside * (1 + (0.3 if contrast == "T1w" else -0.3) * np.sin(x / 2))
        grey = (grey * rng.uniform(0.7, 1.3, grey.shape)) ** self.gain
        affine = np.diag([4.0, 4.0, self.thickness, 1.0])
        nib.save(nib.Nifti1Image(grey.astype(np.float32), affine), path)


def write_study(folder: Path, *more: str) -> Path:
    """Write the study of these hospitals, with further lines at its top."""
    path = folder / "study.toml"
    path.write_text("\n".join((*more, STUDY)))
    return path
