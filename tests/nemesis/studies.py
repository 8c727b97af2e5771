"""Studies that train in a second, and their quiet runs: those that nothing befalls."""

import json
import shutil
from collections.abc import Set
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest

from grandrounds.core.messages import Request, Train
from grandrounds.data.simulation.simulate import Patients
from grandrounds.runs.loop import run_study as run
from grandrounds.study.study import Study
from tests.helpers.federation import digests, fail_when, rows
from tests.helpers.task_studies import tiny_of

SMALL = ("elements.size=[16,16]", "elements.spacing=[14.0,14.0]")
ARMS: dict[str, tuple[int, tuple[str, ...]]] = {  # sites, and what differs
    "fedavg": (3, ("method.kind=fedavg",)),
    "scaffold": (2, ("method.kind=scaffold",)),
    "ditto": (3, ("method.kind=ditto",)),
    "quorum": (3, ("method.kind=fedavg", "topology.require=2", "rounds=4")),
    "quorum, ditto": (3, ("method.kind=ditto", "topology.require=2", "rounds=4")),
    "swarm": (3, ("method.kind=fedavg", "topology.kind=swarm")),
    "swarm of two": (2, ("method.kind=fedavg", "topology.kind=swarm", "rounds=4")),
    "cyclic": (2, ("method.kind=fedavg", "topology.kind=cyclic", "topology.optimizer=travels")),
    "split": (2, ("method.kind=fedavg", "topology.kind=split", "topology.cut=features_1")),
}


@cache
def study_of(arm: str) -> Study:
    """A study of this arm: simulated hospitals that find lesions in a few small slices."""
    sites, overrides = ARMS[arm]
    study = tiny_of("classification", "rounds=3", *SMALL, *overrides, sites=sites)
    patients = Patients(train=2, validation=1, test=1)
    return replace(
        study, site=tuple(replace(spec, slices=2, patients=patients) for spec in study.site)
    )


@dataclass
class QuietRuns:
    """Runs of the arms in this process, each made once; some sites may miss some rounds."""

    folder: Path
    _made: dict[str, Path] = field(default_factory=dict[str, Path])

    def run(self, arm: str, absent: Set[tuple[int, str]] = frozenset()) -> Path:
        """Give the folder of a run in which these sites fail to train in these rounds."""
        words = json.dumps([arm, sorted(absent)])
        if words not in self._made:
            name = sha256(words.encode()).hexdigest()[:12]
            path, unfinished = self.folder / name, self.folder / f"{name}.unfinished"

            def fails(site: str, request: Request) -> bool:
                return isinstance(request, Train) and (request.round, site) in absent

            with pytest.MonkeyPatch.context() as patch:
                if absent:
                    fail_when(patch, fails)
                run(study_of(arm), unfinished)
            shutil.move(unfinished, path)
            self._made[words] = path
        return self._made[words]

    def digests(self, arm: str, absent: Set[tuple[int, str]] = frozenset()) -> list[str]:
        """Give the digest of every round of such a run."""
        return list(digests(self.run(arm, absent)))

    def scores(self, arm: str) -> list[dict[str, str]]:
        """Give what a run's model scores that nobody was absent from."""
        return rows(self.run(arm) / "scores.csv")
