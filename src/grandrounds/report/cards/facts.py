"""The values of a card are read here: who took part, what was trained, what left each site."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from grandrounds.core.errors import BadFolder, BadInput
from grandrounds.core.events import RunFinished, SiteReady
from grandrounds.core.run_folder import ComparisonFolder, RunFolder
from grandrounds.report.analysis.arm import Arm
from grandrounds.report.analysis.folder import (
    ArmEntry,
    RunRecord,
    entry_of,
    read_plan,
    read_run,
)
from grandrounds.report.analysis.metrics import Metric, metric_of, shown
from grandrounds.report.analysis.run import Run, RunScores, run_of
from grandrounds.report.analysis.statistics import Spread, spread
from grandrounds.report.prose.vocabulary import duration, own_steps, steps

_Table: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """One metric at one site, over its patients; `task` is empty where their tasks are averaged."""

    site: str
    task: str
    metric: Metric
    spread: Spread

    @property
    def mean(self) -> str:
        """Write the mean, for example "24.31 dB"; without a unit it has a digit more."""
        return f"{self.spread.mean:.{self._digits}f} {self.metric.unit}".rstrip()

    @property
    def sd(self) -> str:
        """Write the standard deviation, or "none" for a single patient."""
        return "none" if self.spread.sd is None else f"{self.spread.sd:.{self._digits}f}"

    @property
    def worth(self) -> float:
        """Return a number that is higher for a better mean."""
        return self.spread.mean if self.metric.higher_is_better else -self.spread.mean

    @property
    def _digits(self) -> int:
        return 2 if self.metric.unit else 3


@dataclass(frozen=True)
class CardFacts:
    """The values that fill a card: those of a run, which is one of `seeds` of the arm `entry`.

    `alone` are the arms of its comparison that trained alone, with the same seed.
    """

    folder: RunFolder
    record: RunRecord
    entry: ArmEntry
    seeds: tuple[int, ...] = ()
    alone: tuple[Arm, ...] = ()

    @cached_property
    def run(self) -> Run:
        """Return the run's numbers."""
        return run_of(self.record)

    @cached_property
    def arm(self) -> Arm:
        """Return the run as an arm of its own."""
        return Arm(self.entry, (self.run,))

    @cached_property
    def study(self) -> _Table:
        """Return the resolved study."""
        return tomllib.loads(self.record.study.text)

    @property
    def dates(self) -> str:
        """Write the days on which the run began and ended, in UTC."""
        moments = (self.run.began, self.record.events[-1][0])
        days = [f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}" for moment in moments]
        return " to ".join(dict.fromkeys(days))

    @property
    def ready(self) -> list[SiteReady]:
        """Return what data each site has."""
        return list(self.run.ready.values())

    @property
    def simulated(self) -> list[str]:
        """Return the sites whose data are simulated."""
        return [ready.site for ready in self.ready if ready.simulated]

    @property
    def pictured(self) -> list[str]:
        """Return the sites that saved pictures of test cases."""
        names = [str(site["name"]) for site in self.study["site"]]
        return [name for name in names if self.folder.site(name).panels.exists()]

    @property
    def tested_round(self) -> str:
        """Write the round whose model was tested."""
        return str(next(iter(self.run.scored_rounds), "unknown"))

    @property
    def tested_digest(self) -> str:
        """Return the digest of the round that was tested."""
        finished = self.run.finished_rounds
        return next((e.digest for e in finished if str(e.round) == self.tested_round), "unknown")

    @property
    def last_digest(self) -> str:
        """Return the digest of the last model."""
        ending = self.run.ending
        return ending.digest if isinstance(ending, RunFinished) else "unknown"

    @property
    def own_steps(self) -> str:
        """Write a site's own steps for the tested model, from the fewest to the most."""
        return own_steps(self.arm) if self.arm.local_steps else "unknown"

    @property
    def steps_in_a_row(self) -> str:
        """Write how many steps the tested model took one after another."""
        return steps(self.arm.steps_in_a_row) if self.arm.steps_in_a_row else "unknown"

    @property
    def wall_clock(self) -> str:
        """Write how long the sites trained, side by side or in turn."""
        seconds = self.arm.wall_clock
        return "unknown" if seconds is None else duration(seconds)

    @property
    def missed(self) -> Mapping[str, set[int]]:
        """Map each site that did not answer to the rounds that went on without it."""
        found: dict[str, set[int]] = {}
        for absence in self.run.absences:
            found.setdefault(absence.site, set()).update(absence.rounds)
        return found

    @property
    def scores(self) -> list[Score]:
        """Return the test scores of every site, task and metric."""
        return self._scores(self.run.scores)

    @property
    def unseen(self) -> list[Score]:
        """Return the test scores of the sites that did not train."""
        return self._scores(self.run.unseen)

    @cached_property
    def sites(self) -> Mapping[str, Score]:
        """Map every site to its score by the main metric, each patient's tasks averaged."""
        return self._sites(self.arm)

    @property
    def ranked(self) -> list[Score]:
        """Return the scores of the sites, the worst first."""
        return sorted(self.sites.values(), key=lambda score: score.worth)

    @cached_property
    def best_alone(self) -> Mapping[str, Score]:
        """Map each site to its best score by training alone, where the comparison has one."""
        found: dict[str, Score] = {}
        for site, score in (pair for arm in self.alone for pair in self._sites(arm).items()):
            found[site] = max(found.get(site, score), score, key=lambda each: each.worth)
        return found

    def _sites(self, arm: Arm) -> dict[str, Score]:
        if not self.arm.metrics:
            return {}
        metric = metric_of(self.arm.metrics[0])
        found = {site: arm.site_spread(site, metric.key) for site in arm.study.sites}
        return {site: Score(site, "", metric, each) for site, each in found.items() if each}

    def _scores(self, scores: RunScores) -> list[Score]:
        told = shown((key for *_, key in scores), own=self.record.study.own_task)
        return [
            Score(site, task, metric_of(key), spread(list(patients.values())))
            for (site, task, key), patients in scores.items()
            if key in told
        ]


def totals(ready: Iterable[SiteReady], split: str) -> int:
    """Count the patients of a split over all sites."""
    return sum(each.patients.get(split, 0) for each in ready)


def read_card_facts(folder: Path, *, arm: str | None, seed: int | None) -> CardFacts:
    """Read the run of a folder, or one of a comparison.

    Raises `BadInput` where an arm or seed is missing or unknown, `BadFolder` for no finished run.
    """
    comparison = ComparisonFolder(folder)
    if comparison.exists:
        return _of_comparison(comparison, arm, seed)
    if arm is not None or seed is not None:
        raise BadInput(f"{folder}: is a single run; --arm and --seed choose from a comparison")
    record = _finished(RunFolder(folder))
    return CardFacts(RunFolder(folder), record, entry_of(record))


def _of_comparison(folder: ComparisonFolder, arm: str | None, seed: int | None) -> CardFacts:
    plan = read_plan(folder)
    entries = {entry.name: entry for entry in plan.entries}
    if arm not in entries:
        found = f"has no arm '{arm}'" if arm else "is a comparison, and a card is about one arm"
        raise BadInput(f"{folder.path}: {found}; give --arm, one of {', '.join(entries)}")
    picked = plan.seeds[0] if seed is None else seed
    if picked not in plan.seeds:
        known = ", ".join(map(str, plan.seeds))
        raise BadInput(f"{folder.path}: has no seed {picked}; its seeds: {known}")
    runs = {name: folder.run(name, picked) for name in entries}
    others = (
        Arm(entries[name], (run_of(read_run(run)),))
        for name, run in runs.items()
        if name != arm and run.scores.exists()
    )
    alone = tuple(other for other in others if other.local)
    return CardFacts(runs[arm], _finished(runs[arm]), entries[arm], plan.seeds, alone)


def _finished(folder: RunFolder) -> RunRecord:
    if not folder.scores.exists():
        raise BadFolder(
            f"{folder.path}: holds no finished run (no scores.csv), so there is nothing to put on "
            "a card; give a run's folder, or go on with the run (--resume) first"
        )
    if folder.derived.exists():
        raise BadFolder(
            f"{folder.path}: its scores are derived from other arms' models, so there is no model "
            f"for a card; {folder.derived.name} names the arms"
        )
    return read_run(folder)
