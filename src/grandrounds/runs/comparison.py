"""A comparison runs several arms and seeds on identical data, each in a folder of its own."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from queue import Empty, Queue
from threading import Event as ThreadEvent
from typing import TypeAlias

import tomli_w

from grandrounds.algorithms.relay import Relay
from grandrounds.core.device import take_share
from grandrounds.core.errors import RunFailed
from grandrounds.core.events import Event, Failed, Listener
from grandrounds.core.failures import DIVERGED
from grandrounds.core.files import make_output_folder, write_text
from grandrounds.core.journal import read_journal
from grandrounds.core.processes import process_pool
from grandrounds.core.run_folder import ComparisonFolder, RunFolder
from grandrounds.runs.arms import ArmChoice
from grandrounds.runs.budget import Budget, BudgetKind, count_examples
from grandrounds.runs.build import check_processes
from grandrounds.runs.derived import DerivedArm, trained_again
from grandrounds.runs.evaluate import matrix
from grandrounds.runs.folder import TrainedRun, check_unchanged, is_finished
from grandrounds.runs.loop import run_study
from grandrounds.runs.site_data import Preparing, nobody_told, open_sites
from grandrounds.runs.tables import concatenate
from grandrounds.study.site_file import SiteSource
from grandrounds.study.study import Study

OnEvent: TypeAlias = Callable[["ComparisonRun", Event], None]


@dataclass(frozen=True)
class ComparisonRun:
    """One run of a comparison: an arm with a seed, perhaps without one of the sites.

    One that trains `again`, on the same data from other first weights, is for a derived arm.
    """

    arm: ArmChoice
    seed: int
    left_out: str = ""
    again: bool = False

    @property
    def name(self) -> str:
        """Return the path of the run's folder below the comparison's."""
        below = ComparisonFolder(Path())
        if self.again:
            return below.again(self.arm.name, self.seed).path.as_posix()
        return below.run(self.arm.name, self.seed, without=self.left_out).path.as_posix()

    @property
    def reported(self) -> bool:
        """Tell whether the run's scores are those of its arm."""
        return not self.left_out and not self.again


@dataclass(frozen=True)
class Comparison:
    """Arms to be run with each of `num_seeds` seeds, `workers` runs at a time, in `folder`.

    A single worker is this process.

    `studies` maps each arm to its study with the first seed; the others count on from there.
    `leave_one_out` runs each arm that shares a model once more without each site, which its model
    is then tested on; `crosses` scores every site's model at every site. `accepts_changes` lets
    runs go on under another version, or with other data. `derived` arms have their scores from
    models of the others; `budget` is what was made equal for all arms. The processes compute on
    `devices` in turn. The arms of a `search` are candidates: none is tested, and one whose training
    diverges stays as it failed.
    """

    folder: Path
    studies: Mapping[ArmChoice, Study]
    files: tuple[SiteSource, ...] = ()
    workers: int = 1
    num_seeds: int = 1
    leave_one_out: bool = False
    crosses: bool = False
    accepts_changes: bool = False
    derived: tuple[DerivedArm, ...] = ()
    budget: Budget = field(default_factory=Budget)
    devices: tuple[str, ...] = ()
    search: tuple[str, ...] = ()

    @property
    def cells(self) -> dict[ComparisonRun, Study]:
        """Return all runs: all arms with the first seed, then all with the next."""
        repeated = {arm for derived in self.derived for arm in derived.repeated}
        return {
            cell: _study_of(cell, study)
            for more in range(self.num_seeds)
            for arm, study in self.studies.items()
            for cell in [
                *(
                    ComparisonRun(arm, study.seed + more, site)
                    for site in ("", *self._left_out(study))
                ),
                *([ComparisonRun(arm, study.seed + more, again=True)] if arm in repeated else []),
            ]
        }

    def within(self, budget: BudgetKind, preparing: Preparing = nobody_told) -> "Comparison":
        """Return the comparison whose arms have this budget in common. Raises as `fit` does."""
        first = next(iter(self.studies.values()))
        equal = Budget(budget, count_examples(first, self.files, preparing))
        return replace(self, studies=equal.fit(self.studies), budget=equal)

    @property
    def terms(self) -> list[str]:
        """Write what is equal for all arms, and what each does besides; of a search, what it is."""
        if self.search:
            return list(self.search)
        return [*self.budget.terms(self.studies), *(arm.terms for arm in self.derived)]

    def _left_out(self, study: Study) -> tuple[str, ...]:
        alone = study.build_method().sharing().alone
        return () if alone or not self.leave_one_out else study.trainers

    def run_folder(self, cell: ComparisonRun) -> Path:
        return self.folder / cell.name

    def title(self, cell: ComparisonRun) -> str:
        """Write a run's title: its seed where there are several, and the site that is left out."""
        title = cell.arm.title(self.studies[cell.arm])
        seed = f", seed {cell.seed}" if self.num_seeds > 1 else ""
        without = f", without {cell.left_out}" if cell.left_out else ""
        again = ", a second model" if cell.again else ""
        return f"{title}{seed}{without}{again}"

    def is_done(self, cell: ComparisonRun) -> bool:
        """Tell whether a run has all its results, or is a candidate that can have none."""
        folder = self.run_folder(cell)
        if self.search and diverged(folder):
            return True
        crossed = RunFolder(folder).matrix.exists() or not self.crosses or not cell.reported
        return is_finished(folder) and crossed

    def run(self, on_event: OnEvent, preparing: Preparing = nobody_told) -> None:
        """Run what is not done yet, and leave what is done. Raises as `run_study` does."""
        cells = self.cells
        make_output_folder(self.folder)
        for cell, study in cells.items():
            if RunFolder(self.run_folder(cell)).study.exists():
                check_unchanged(self.run_folder(cell), study)
        self.describe()
        todo = {cell: study for cell, study in cells.items() if not self.is_done(cell)}
        for study in {study.seed: study for study in todo.values()}.values():
            open_sites(study, self.files, preparing=preparing)  # once, for all arms
        if self.workers == 1:
            self._run_here(todo, on_event)
        elif todo:
            check_processes(next(iter(todo.values())), self.files)
            self._run_all(todo, on_event)
        self._derive()
        if not self.search:  # whose arms have no scores
            self._join_tables()

    def _derive(self) -> None:
        for arm, seed in product(self.derived, self._seeds):
            if not arm.is_done(ComparisonFolder(self.folder), seed):
                arm.derive(ComparisonFolder(self.folder), seed, self.files)

    @property
    def _seeds(self) -> list[int]:
        return list(dict.fromkeys(cell.seed for cell in self.cells))

    def _join_tables(self) -> None:
        folder = ComparisonFolder(self.folder)
        runs = {cell: RunFolder(self.run_folder(cell)) for cell in self.cells}
        whole = [run for cell, run in runs.items() if cell.reported]
        derived = [folder.run(arm.name, seed) for arm, seed in product(self.derived, self._seeds)]
        _join(folder.scores, [run.scores for run in (*whole, *derived)])
        _join(folder.unseen, [run.unseen for run in runs.values()])
        _join(folder.matrix, [run.matrix for run in whole])

    def describe(self) -> None:
        """Write what the arms, the seeds and the terms are, for the report."""
        arms = [
            {
                "name": arm.name,
                "title": arm.title(study),
                "description": study.build_method().description,
            }
            for arm, study in self.studies.items()
        ]
        arms += [{"name": a.name, "title": a.title, "description": ""} for a in self.derived]
        searched = {"search": list(self.search)} if self.search else {}
        description = {"seeds": self._seeds, "terms": self.terms, **searched, "arm": arms}
        write_text(ComparisonFolder(self.folder).arms, tomli_w.dumps(description))

    def _run_here(self, todo: Mapping[ComparisonRun, Study], on_event: OnEvent) -> None:
        """Run all in this process, which may have classes that no other process can import."""
        take_share(0, self.devices)
        for cell, study in todo.items():
            _run_cell(self._order(cell, study), partial(on_event, cell))

    def _run_all(self, todo: Mapping[ComparisonRun, Study], on_event: OnEvent) -> None:
        begin = partial(take_share, devices=self.devices)
        with process_pool(self.workers, begin) as (pool, manager):
            channel = Channel(manager.Queue(), manager.Event())
            jobs = [
                pool.submit(_run_elsewhere, self._order(*cell), channel) for cell in todo.items()
            ]
            try:
                _follow(jobs, channel, on_event)
            except BaseException:
                channel.stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _order(self, cell: ComparisonRun, study: Study) -> "RunOrder":
        crosses = self.crosses and cell.reported
        folder, accepts = self.run_folder(cell), self.accepts_changes
        return RunOrder(cell, study, folder, self.files, crosses, accepts, bool(self.search))


def _join(table: Path, parts: Sequence[Path]) -> None:
    """Join the runs' tables of one kind into one, if there are any."""
    existing = [path for path in parts if path.exists()]
    if existing:
        concatenate(table, existing)


def _study_of(cell: ComparisonRun, study: Study) -> Study:
    held = (*study.holdout_sites, *([cell.left_out] if cell.left_out else []))
    seeded = replace(study, seed=cell.seed, holdout_sites=held)
    return _groups_of_those_left(trained_again(seeded) if cell.again else seeded)


def _groups_of_those_left(study: Study) -> Study:
    """Return the study with at most as many groups of a relay as there are sites that train."""
    topology, left = study.build_topology(), len(study.trainers)
    if not isinstance(topology, Relay) or topology.groups <= left:
        return study
    options = {**study.topology.options, "groups": left}
    return replace(study, topology=replace(study.topology, options=options))


def diverged(folder: Path) -> bool:
    """Tell whether a run ended because a loss or a tensor was not finite, as it would again."""
    journal = RunFolder(folder).journal
    events = [event for _, event in read_journal(journal)] if journal.exists() else []
    return any(isinstance(event, Failed) and event.error == DIVERGED for event in events[-1:])


@dataclass(frozen=True)
class RunOrder:
    """A run that a process of the comparison executes."""

    cell: ComparisonRun
    study: Study
    folder: Path
    files: tuple[SiteSource, ...]
    crosses: bool
    accepts_changes: bool
    searches: bool = False


@dataclass(frozen=True)
class Channel:
    """A channel between the runs' processes, which send events, and this one, which stops them."""

    events: "Queue[tuple[ComparisonRun, Event]]"
    stop: ThreadEvent


def _follow(jobs: Sequence["Future[None]"], channel: Channel, on_event: OnEvent) -> None:
    pending = set(jobs)
    while pending:
        done, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
        _drain(channel, on_event)
        for job in done:
            job.result()


def _drain(channel: Channel, on_event: OnEvent) -> None:
    while True:
        try:
            on_event(*channel.events.get_nowait())
        except Empty:
            return


def _run_elsewhere(order: RunOrder, channel: Channel) -> None:
    def send(event: Event) -> None:
        if channel.stop.is_set():
            raise KeyboardInterrupt
        channel.events.put((order.cell, event))

    _run_cell(order, send)


def _run_cell(order: RunOrder, listener: Listener) -> None:
    folder, files = order.folder, order.files
    if not is_finished(folder):
        resume = RunFolder(folder).study.exists()
        try:
            run_study(
                order.study,
                folder,
                files=files,
                resume=resume,
                accept_changes=order.accepts_changes,
                listeners=[listener],
                tests=not order.searches,
            )
        except RunFailed:
            if not (order.searches and diverged(folder)):
                raise
    if order.crosses:
        matrix(TrainedRun(folder), files)
