"""A comparison runs several arms and seeds on identical data, each in a folder of its own."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, Queue
from threading import Event as ThreadEvent
from typing import TypeAlias

import tomli_w

from grandrounds.core.device import take_share
from grandrounds.core.events import Event
from grandrounds.core.files import make_output_folder, write_text
from grandrounds.core.processes import process_pool
from grandrounds.core.run_folder import ComparisonFolder, RunFolder
from grandrounds.runs.arms import ArmChoice, comparison_terms
from grandrounds.runs.evaluate import matrix
from grandrounds.runs.folder import FinishedRun, check_unchanged, is_finished
from grandrounds.runs.loop import run
from grandrounds.runs.site_data import Preparing, nobody_told, open_sites
from grandrounds.runs.tables import concatenate
from grandrounds.study.site_file import SiteFile
from grandrounds.study.study import Study

OnEvent: TypeAlias = Callable[["ComparisonRun", Event], None]


@dataclass(frozen=True)
class ComparisonRun:
    """One run of a comparison: an arm with a seed, perhaps without one of the sites."""

    arm: ArmChoice
    seed: int
    left_out: str = ""

    @property
    def name(self) -> str:
        """Return the path of the run's folder below the comparison's."""
        below = ComparisonFolder(Path())
        return below.run(self.arm.name, self.seed, without=self.left_out).path.as_posix()


@dataclass(frozen=True)
class Comparison:
    """Arms to be run with each of `num_seeds` seeds, `workers` runs at a time, in `folder`.

    `studies` maps each arm to its study with the first seed; the others count on from there.
    `leave_one_out` runs each arm that shares a model once more without each site, which its model
    is then tested on; `crosses` scores every site's model at every site. `accepts_changes` lets
    runs go on under another version, or with other data.
    """

    folder: Path
    studies: Mapping[ArmChoice, Study]
    files: tuple[SiteFile, ...] = ()
    workers: int = 1
    num_seeds: int = 1
    leave_one_out: bool = False
    crosses: bool = False
    accepts_changes: bool = False

    @property
    def cells(self) -> dict[ComparisonRun, Study]:
        """Return all runs: all arms with the first seed, then all with the next."""
        return {
            ComparisonRun(arm, study.seed + more, site): _without(site, study, study.seed + more)
            for more in range(self.num_seeds)
            for arm, study in self.studies.items()
            for site in ("", *self._left_out(study))
        }

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
        return f"{title}{seed}{without}"

    def is_done(self, cell: ComparisonRun) -> bool:
        """Tell whether a run has all its results."""
        folder = self.run_folder(cell)
        crossed = RunFolder(folder).matrix.exists() or not self.crosses or bool(cell.left_out)
        return is_finished(folder) and crossed

    def run(self, on_event: OnEvent, preparing: Preparing = nobody_told) -> None:
        """Run what is not done yet, and leave what is done. Raises as `run` does."""
        cells = self.cells
        make_output_folder(self.folder)
        for cell, study in cells.items():
            if RunFolder(self.run_folder(cell)).study.exists():
                check_unchanged(self.run_folder(cell), study)
        self._describe()
        todo = {cell: study for cell, study in cells.items() if not self.is_done(cell)}
        for study in {study.seed: study for study in todo.values()}.values():
            open_sites(study, self.files, preparing=preparing)  # once, for all arms
        if todo:
            self._run_all(todo, on_event)
        self._join_tables()

    def _join_tables(self) -> None:
        folder = ComparisonFolder(self.folder)
        runs = {cell: RunFolder(self.run_folder(cell)) for cell in self.cells}
        whole = [run for cell, run in runs.items() if not cell.left_out]
        _join(folder.scores, [run.scores for run in whole])
        _join(folder.unseen, [run.unseen for run in runs.values()])
        _join(folder.matrix, [run.matrix for run in whole])

    def _describe(self) -> None:
        arms = [
            {
                "name": arm.name,
                "title": arm.title(study),
                "description": study.build_method().description,
            }
            for arm, study in self.studies.items()
        ]
        seeds = list(dict.fromkeys(cell.seed for cell in self.cells))
        description = {"seeds": seeds, "terms": comparison_terms(self.studies), "arm": arms}
        write_text(ComparisonFolder(self.folder).arms, tomli_w.dumps(description))

    def _run_all(self, todo: Mapping[ComparisonRun, Study], on_event: OnEvent) -> None:
        with process_pool(self.workers, take_share) as (pool, manager):
            channel = Channel(manager.Queue(), manager.Event())
            jobs = [pool.submit(_run_cell, self._order(*cell), channel) for cell in todo.items()]
            try:
                _follow(jobs, channel, on_event)
            except BaseException:
                channel.stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _order(self, cell: ComparisonRun, study: Study) -> "RunOrder":
        crosses = self.crosses and not cell.left_out
        folder, accepts = self.run_folder(cell), self.accepts_changes
        return RunOrder(cell, study, folder, self.files, crosses, accepts)


def _join(table: Path, parts: Sequence[Path]) -> None:
    """Join the runs' tables of one kind into one, if there are any."""
    existing = [path for path in parts if path.exists()]
    if existing:
        concatenate(table, existing)


def _without(site: str, study: Study, seed: int) -> Study:
    held = (*study.holdout_sites, site) if site else study.holdout_sites
    return replace(study, seed=seed, holdout_sites=held)


@dataclass(frozen=True)
class RunOrder:
    """A run that a process of the comparison executes."""

    cell: ComparisonRun
    study: Study
    folder: Path
    files: tuple[SiteFile, ...]
    crosses: bool
    accepts_changes: bool


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


def _run_cell(order: RunOrder, channel: Channel) -> None:
    def send(event: Event) -> None:
        if channel.stop.is_set():
            raise KeyboardInterrupt
        channel.events.put((order.cell, event))

    folder, files = order.folder, order.files
    if not is_finished(folder):
        resume = RunFolder(folder).study.exists()
        run(
            order.study,
            folder,
            files=files,
            resume=resume,
            accept_changes=order.accepts_changes,
            listeners=[send],
        )
    if order.crosses:
        matrix(FinishedRun(folder), files)
