"""This module alone names the files and folders of a run and of a comparison.

Names become folders here, so they are checked here too; a wrong one raises `BadFolder`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, overload

from grandrounds.core.errors import BadFolder
from grandrounds.core.names import check_name

# Of scores.csv and unseen.csv; in matrix.csv "model" stands before them.
SCORE_COLUMNS = ("arm", "seed", "site", "patient", "case", "task", "metric", "value", "round")


class _Folder(Protocol):
    @property
    def path(self) -> Path: ...


@dataclass(frozen=True)
class Entry:
    """A name in every folder of a class: on a folder it is a path, on the class it is the name."""

    name: str

    @overload
    def __get__(self, folder: None, kind: type) -> str: ...
    @overload
    def __get__(self, folder: _Folder, kind: type) -> Path: ...
    def __get__(self, folder: _Folder | None, kind: type) -> Path | str:
        return folder.path / self.name if folder else self.name


def _named(name: str, of: str = "site") -> str:
    return check_name(name, of, BadFolder)


@dataclass(frozen=True)
class SiteFolder:
    """What a run saves for one site, or for one that joined: models, private state, pictures."""

    path: Path

    state = Entry("state")  # its private state, round by round
    merged = Entry("merged")  # what it merged where it led
    tuned = Entry("tuned.safetensors")
    panels = Entry("panels.npz")
    protocols = Entry("protocols.json")  # how the site usually scans, if its network reads that
    ledger = Entry("ledger.jsonl")  # what was asked of the site, and every message that left
    older_log = Entry("audit.jsonl")  # what stood in the ledger's place in older versions
    findings = Entry("audit.json")  # what attacks on its part of the run found: counts and rates
    findings_page = Entry("audit.html")  # the same as a page, with pictures where the site allows
    profile = Entry("profile.json")  # what its training images look like
    unmasked = Entry("unmasked.json")  # whose sum it helped to unmask, by round
    validation = Entry("validation.jsonl")  # its validation scores by round and task

    def private(self, version: str = "") -> Path:
        """Return the path of the private part of the tested model, or of another version."""
        return self.path / f"private{version}.safetensors"

    def beside(self, name: str) -> "SiteFolder":
        """Return the folder of another site of the same run. Raises `BadFolder`."""
        return SiteFolder(self.path.parent / _named(name))

    def shared(self, version: str = "") -> Path:
        """Return the path of the shared part, which exists if the site itself holds it."""
        return self.path / f"shared{version}.safetensors"


@dataclass(frozen=True)
class ResultFolder:
    """What a run and a comparison both have: tables of test scores, and the output of reports."""

    path: Path

    scores = Entry("scores.csv")  # a run's is written last: it marks that the run is finished
    unseen = Entry("unseen.csv")
    matrix = Entry("matrix.csv")
    report = Entry("report.html")
    figures = Entry("figures")
    tables = Entry("tables")
    card = Entry("card")


@dataclass(frozen=True)
class RunFolder(ResultFolder):
    """The folder of one run."""

    study = Entry("study.toml")
    journal = Entry("journal.jsonl")
    ledger = Entry("ledger.jsonl")  # the coordinator's: every message that it received
    lock = Entry(".lock")
    state = Entry("state")  # the coordinator's, round by round
    shared = Entry("model/shared.safetensors")  # of the tested model
    last = Entry("model/last.safetensors")
    sites = Entry("sites")
    rounds = Entry("rounds.csv")
    digests = Entry("digests.csv")
    forgetting = Entry("forgetting.csv")
    tracking = Entry("tracking.json")
    dossier = Entry("dossier")
    derived = Entry(
        "derived.toml"
    )  # of an arm without models of its own: where its scores are from

    def site(self, name: str) -> SiteFolder:
        """Return the folder of a site that trained."""
        return SiteFolder(self.sites / _named(name))

    def adapted(self, name: str) -> SiteFolder:
        """Return the folder of a site that joined afterwards."""
        return SiteFolder(self.path / "adapted" / _named(name))

    def evaluated(self, name: str) -> Path:
        """Return the table of the scores at a site that was tested afterwards."""
        return self.path / "evaluated" / f"{_named(name)}.csv"


@dataclass(frozen=True)
class ComparisonFolder(ResultFolder):
    """The folder of a comparison: runs as arms/ARM/seed-S, or as without/SITE/arms/ARM/seed-S.

    Models that were trained once more, for an ensemble, lie in again/arms/ARM/seed-S.
    """

    arms = Entry("arms.toml")
    candidates = Entry("candidates.toml")  # of a sweep: what was tried, and how it validated
    chosen = Entry("chosen.toml")  # of a sweep: the study of the candidate that was chosen

    @property
    def exists(self) -> bool:
        """Tell whether there is a comparison, and not a single run."""
        return self.arms.exists()

    @property
    def searched(self) -> bool:
        """Tell whether the arms are candidates of a sweep, which are not tested."""
        return self.candidates.exists()

    def run(self, arm: str, seed: int, *, without: str = "") -> RunFolder:
        """Return the folder of one run, perhaps trained without one of the sites."""
        below = self.path / "without" / _named(without) if without else self.path
        return RunFolder(below / "arms" / _named(arm, "arm") / f"seed-{seed}")

    def again(self, arm: str, seed: int) -> RunFolder:
        """Return the folder of a run that is repeated on the same data with other draws."""
        return ComparisonFolder(self.path / "again").run(arm, seed)

    def runs(self) -> list[RunFolder]:
        """List the runs with all sites that have a folder."""
        return [RunFolder(path) for path in sorted(self.path.glob("arms/*/seed-*"))]

    def trained(self) -> list[RunFolder]:
        """List those of the runs whose arm is not derived from others, so that it has models."""
        return [run for run in self.runs() if not run.derived.exists()]

    def all_trained(self) -> list[RunFolder]:
        """List the runs that have models, those without one of the sites last."""
        parts = [ComparisonFolder(path) for path in sorted(self.path.glob("without/*"))]
        return [run for part in (self, *parts) for run in part.trained()]


def comparison_of(run: Path) -> tuple[ComparisonFolder, str] | None:
    """Find the comparison that a run belongs to, and the site that the run was trained without."""
    above = run.resolve().parents
    if len(above) > 2 and ComparisonFolder(above[2]).exists:
        return ComparisonFolder(above[2]), ""
    if len(above) > 4 and ComparisonFolder(above[4]).exists:
        return ComparisonFolder(above[4]), above[2].name
    return None
