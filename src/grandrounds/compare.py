"""Several arms and seeds on identical data and splits: each a run folder, side by side."""

import multiprocessing as mp
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing.managers import SyncManager
from pathlib import Path
from queue import Empty, Queue
from threading import Event as ThreadEvent
from typing import TypeAlias

import tomli_w

from grandrounds.arms import Arm
from grandrounds.events import Event
from grandrounds.fairness import terms
from grandrounds.methods import METHODS
from grandrounds.opening import open_sites
from grandrounds.processes import end_with_parent
from grandrounds.run import run
from grandrounds.run_folder import check_unchanged, is_finished
from grandrounds.site_file import SiteFile
from grandrounds.study import Study
from grandrounds.tables import concatenate
from grandrounds.weights import write_atomically

OnEvent: TypeAlias = Callable[["Cell", Event], None]
DEMO_ARMS = ("pflsynth:split=wide", "fedavg", "local:task.generator=personalised", "local")


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: an arm with a seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Name the run's folder, below the arms'."""
        return f"{self.arm.name}/seed-{self.seed}"


@dataclass(frozen=True)
class Comparison:
    """Arms to be run with each of `num_seeds` seeds, `workers` runs at a time, in `folder`.

    `studies` maps each arm to its study with the first seed; the others count on from there.
    """

    folder: Path
    studies: Mapping[Arm, Study]
    files: tuple[SiteFile, ...] = ()
    workers: int = 1
    num_seeds: int = 1

    @property
    def cells(self) -> dict[Cell, Study]:
        """List all runs: all arms with the first seed, then all with the next."""
        return {
            Cell(arm, study.seed + more): replace(study, seed=study.seed + more)
            for more in range(self.num_seeds)
            for arm, study in self.studies.items()
        }

    def run_folder(self, cell: Cell) -> Path:
        """Give the folder of one run."""
        return self.folder / "arms" / cell.name

    def is_done(self, cell: Cell) -> bool:
        """Tell whether a run came to its end before."""
        return is_finished(self.run_folder(cell))

    def run(self, on_event: OnEvent) -> None:
        """Run what is not done yet; what is done is kept. Raises as `run` does."""
        cells = self.cells
        for cell, study in cells.items():
            if (self.run_folder(cell) / "study.toml").exists():
                check_unchanged(self.run_folder(cell), study)
        self._describe()
        todo = {cell: study for cell, study in cells.items() if not self.is_done(cell)}
        for study in {study.seed: study for study in todo.values()}.values():
            open_sites(study, self.files)  # prepares the data once, for all arms
        if todo:
            self._run_all(todo, on_event)
        concatenate(
            self.folder / "scores.csv", [self.run_folder(cell) / "scores.csv" for cell in cells]
        )

    def _describe(self) -> None:
        arms = [
            {
                "name": arm.name,
                "title": arm.title(study),
                "description": (METHODS[arm.kind].__doc__ or "").partition("\n")[0],
            }
            for arm, study in self.studies.items()
        ]
        seeds = list(dict.fromkeys(cell.seed for cell in self.cells))
        told = {"seeds": seeds, "terms": terms(self.studies), "arm": arms}
        write_atomically(self.folder / "arms.toml", tomli_w.dumps(told).encode())

    def _run_all(self, todo: Mapping[Cell, Study], on_event: OnEvent) -> None:
        context = mp.get_context("spawn")
        manager = SyncManager(ctx=context)
        manager.start(end_with_parent)
        with (
            manager,
            ProcessPoolExecutor(self.workers, context, initializer=end_with_parent) as pool,
        ):
            line = Line(manager.Queue(), manager.Event())
            jobs = [
                pool.submit(_run_cell, cell, study, self.run_folder(cell), self.files, line)
                for cell, study in todo.items()
            ]
            try:
                _follow(jobs, line, on_event)
            except BaseException:
                line.stop.set()
                pool.shutdown(cancel_futures=True)
                raise


@dataclass(frozen=True)
class Line:
    """Between the arms' processes and this one: events come this way, "stop" goes the other."""

    heard: "Queue[tuple[Cell, Event]]"
    stop: ThreadEvent


def _follow(jobs: Sequence["Future[None]"], line: Line, on_event: OnEvent) -> None:
    pending = set(jobs)
    while pending:
        done, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
        _drain(line, on_event)
        for job in done:
            job.result()


def _drain(line: Line, on_event: OnEvent) -> None:
    while True:
        try:
            on_event(*line.heard.get_nowait())
        except Empty:
            return


def _run_cell(
    cell: Cell, study: Study, folder: Path, files: tuple[SiteFile, ...], line: Line
) -> None:
    def hear(event: Event) -> None:
        if line.stop.is_set():
            raise KeyboardInterrupt
        line.heard.put((cell, event))

    resume = (folder / "study.toml").exists()
    run(study, folder, files=files, resume=resume, listeners=[hear])
