"""Several arms on identical data, splits and seed: each a run folder of its own, side by side."""

import multiprocessing as mp
import re
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Event as ThreadEvent
from typing import TypeAlias

import tomli_w

from grandrounds.errors import BadStudy
from grandrounds.events import Event
from grandrounds.methods import METHODS
from grandrounds.opening import open_sites
from grandrounds.run import run
from grandrounds.run_folder import check_unchanged, is_finished
from grandrounds.site_file import SiteFile
from grandrounds.study import Study
from grandrounds.study_file import Table, parse_study
from grandrounds.tables import concatenate
from grandrounds.tasks import Synthesis
from grandrounds.weights import write_atomically

OnEvent: TypeAlias = Callable[[str, Event], None]
DEMO_ARMS = ("pflsynth:split=wide", "fedavg", "local:task.generator=personalised", "local")


@dataclass(frozen=True)
class Arm:
    """One arm: a method, a topology if not the study's own, and what else differs.

    It is written `METHOD[@TOPOLOGY][:KEY=VALUE[:KEY=VALUE]]`. A key without a dot is an option of
    the method; one with a dot is a path in the study.
    """

    label: str

    @property
    def kind(self) -> str:
        """Name the method."""
        return self.label.partition(":")[0].partition("@")[0]

    @property
    def topology(self) -> str:
        """Name the topology, if the arm does."""
        return self.label.partition(":")[0].partition("@")[2]

    @property
    def name(self) -> str:
        """Give the name that the arm has in tables and folders."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.label).strip("-")

    @property
    def overrides(self) -> tuple[str, ...]:
        """List what differs, as `key=value`."""
        pairs = self.label.split(":")[1:]
        return tuple(pair if "." in pair.partition("=")[0] else f"method.{pair}" for pair in pairs)

    def title(self, study: Study) -> str:
        """Write the arm's name for people."""
        title = study.build_method().title
        differing = [pair.partition("=")[2] for pair in self.overrides]
        if self.topology:
            title = f"{title} over {self.topology}"
        if study.method.kind == "local" and isinstance(study.task, Synthesis):
            differing = [f"{study.task.generator} network"]
        return f"{title} ({', '.join(differing)})" if differing else title

    def study(self, table: Table, overrides: Sequence[str]) -> Study:
        """Make the arm's study from the comparison's. Raises `BadStudy`."""
        if self.kind not in METHODS:
            raise BadStudy(
                f"arm '{self.label}': no method '{self.kind}'; known: {', '.join(METHODS)}"
            )
        own = {**table, "method": {"kind": self.kind}, "arm": self.name}
        if self.topology:
            own["topology"] = {"kind": self.topology}
        return parse_study(own, (*overrides, *self.overrides), source=f"arm '{self.label}'")


@dataclass(frozen=True)
class Comparison:
    """Arms to be run, side by side in `folder`, `workers` at a time."""

    folder: Path
    studies: dict[Arm, Study]
    files: tuple[SiteFile, ...] = ()
    workers: int = 1

    def arm_folder(self, arm: Arm) -> Path:
        """Give the run folder of an arm."""
        return self.folder / "arms" / arm.name

    def run(self, on_event: OnEvent) -> None:
        """Run what is not done yet; what is done is kept. Raises as `run` does."""
        for arm, study in self.studies.items():
            if self.arm_folder(arm).exists():
                check_unchanged(self.arm_folder(arm), study)
        self._describe()
        open_sites(next(iter(self.studies.values())), self.files)  # prepares the data once, for all
        todo = {a: s for a, s in self.studies.items() if not is_finished(self.arm_folder(a))}
        if todo:
            self._run_all(todo, on_event)
        sources = [self.arm_folder(arm) / "scores.csv" for arm in self.studies]
        concatenate(self.folder / "scores.csv", sources)

    def _describe(self) -> None:
        arms = [
            {
                "name": arm.name,
                "title": arm.title(study),
                "description": (METHODS[arm.kind].__doc__ or "").partition("\n")[0],
            }
            for arm, study in self.studies.items()
        ]
        write_atomically(self.folder / "arms.toml", tomli_w.dumps({"arm": arms}).encode())

    def _run_all(self, todo: dict[Arm, Study], on_event: OnEvent) -> None:
        context = mp.get_context("spawn")
        with (
            context.Manager() as manager,
            ProcessPoolExecutor(self.workers, mp_context=context) as pool,
        ):
            line = Line(manager.Queue(), manager.Event())
            jobs = [
                pool.submit(_run_arm, arm.name, study, self.arm_folder(arm), self.files, line)
                for arm, study in todo.items()
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

    heard: "Queue[tuple[str, Event]]"
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


def _run_arm(
    name: str, study: Study, folder: Path, files: tuple[SiteFile, ...], line: Line
) -> None:
    def hear(event: Event) -> None:
        if line.stop.is_set():
            raise KeyboardInterrupt
        line.heard.put((name, event))

    resume = (folder / "study.toml").exists()
    run(study, folder, files=files, resume=resume, listeners=[hear])
