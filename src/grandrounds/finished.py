"""A finished run: its study, and the model that each of its sites was left with."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from grandrounds.errors import BadFolder
from grandrounds.opening import POOLED
from grandrounds.run_folder import is_finished
from grandrounds.study import Study
from grandrounds.study_file import read_study
from grandrounds.tables import Told
from grandrounds.weights import Weights, read


@dataclass(frozen=True)
class Finished:
    """The folder of a run that came to its end. Raises `BadFolder` for any other."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "study.toml").exists():
            raise BadFolder(f"{self.folder}: no study.toml, so no run; give a run's folder")
        if not is_finished(self.folder):
            raise BadFolder(
                f"{self.folder}: its run is not finished; go on with it (--resume) first"
            )

    @cached_property
    def study(self) -> Study:
        """Give the study as it was resolved."""
        return read_study(self.folder / "study.toml", ())

    @cached_property
    def told(self) -> Told:
        """Say whose scores these are: arm, seed, and the round whose model was tested."""
        with (self.folder / "scores.csv").open(newline="") as file:
            rounds = [int(row["round"]) for row in csv.DictReader(file)]
        return Told(self.study.title, self.study.seed, max(rounds, default=0))

    @property
    def models(self) -> tuple[str, ...]:
        """Name the sites whose models there are; pooled data made one model."""
        return (POOLED,) if self.study.build_method().pooled else self.study.trainers

    def shared(self) -> Weights:
        """Give what of the tested model is every site's; empty where nothing travels."""
        first = self.folder / "sites" / self.models[0] / "shared.safetensors"
        places = (self.folder / "model" / "shared.safetensors", first)
        found = [place for place in places if place.exists()]
        return read(found[0])[0] if found else {}

    def own(self, site: str) -> Weights:
        """Give the tested model of a site, its private part included."""
        folder = self.folder / "sites" / site
        if self.study.training.fine_tune:
            return read(folder / "tuned.safetensors")[0]
        return self.shared() | read(folder / "private.safetensors")[0]


def finished_runs(folder: Path) -> Sequence[Finished]:
    """Find the run in a folder, or all of a comparison's. Raises `BadFolder`."""
    if not (folder / "arms.toml").exists():
        return [Finished(folder)]
    return [Finished(path.parent) for path in sorted(folder.glob("arms/*/seed-*/study.toml"))]
