import multiprocessing as mp
import os
import signal
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from grandrounds.algorithms.topology import Quorum
from grandrounds.core.device import num_cores
from grandrounds.core.errors import BadImage, FailureCard, SiteFailed
from grandrounds.core.events import Event, RoundFinished, SiteTrained
from grandrounds.core.messages import Describe, Reply, Request, Train
from grandrounds.data.simulation.simulate import Patients
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.engines.process_pool import (
    Assignment,
    ProcessPoolEngine,
    assign_sites,
    start_workers,
)
from grandrounds.runs.build import distribute, host_sites, num_processes
from grandrounds.runs.listeners import SilentListener
from grandrounds.runs.loop import run_study as run
from grandrounds.site.site import Promise, Site
from grandrounds.study.study import Study
from tests.helpers.command import PROGRAM, hear_ctrl_c, wait_for
from tests.helpers.federation import TINY, built, digests, rows, tiny

pytestmark = pytest.mark.slow

ORDER = Train(round=1, since=0)
NAMES = ("alder", "birch", "cedar")


@pytest.mark.parametrize(
    ("examples", "workers", "shares"),
    [
        ({"a": 1, "b": 1, "c": 1, "d": 1}, 2, (("a", "c"), ("b", "d"))),
        ({"a": 1, "b": 2, "c": 9, "d": 4, "e": 3}, 2, (("a", "c"), ("b", "d", "e"))),
        ({"a": 5, "b": 4, "c": 3, "d": 3, "e": 3}, 2, (("a", "d"), ("b", "c", "e"))),
        ({"a": 0, "b": 0, "c": 0}, 3, (("a",), ("b",), ("c",))),
        ({"a": 2, "b": 1}, 8, (("a",), ("b",))),
        ({"a": 2, "b": 1}, 1, (("a", "b"),)),
    ],
)
def test_the_largest_site_goes_first_to_who_has_the_least_to_do(
    examples: Mapping[str, int], workers: int, shares: tuple[Assignment, ...]
):
    assert assign_sites(examples, workers) == shares


def test_there_are_never_more_processes_than_sites_and_pooled_data_is_one_sites():
    assert [num_processes(tiny(sites=3), workers) for workers in (1, 2, 64)] == [1, 2, 3]
    assert num_processes(tiny("method.kind=central"), 4) == 1


def test_processes_share_the_cores_unless_the_study_gives_each_its_threads():
    study = tiny("training.threads=0")
    threads = [study.machine(processes=n).threads for n in (1, num_cores(), 999)]
    assert threads == [num_cores(), 1, 1]
    assert tiny("training.threads=3").training.machine(processes=8).threads == 3


@dataclass(frozen=True)
class Odd(Site):
    """A site that cannot train: it fails, or takes an hour."""

    error: Exception | None = None

    def begin(self, request: Request) -> Promise:
        if isinstance(request, Train):
            if self.error is None:
                time.sleep(3600)
            else:
                raise self.error
        return super().begin(request)


@contextmanager
def rehearsed(
    study: Study, folder: Path, odd: str, error: Exception | None, share: Assignment
) -> Generator[InProcessEngine, None, None]:
    """A share of a study's sites, one of which is odd."""
    with host_sites(study, (), folder, 2, share) as simulation:
        sites = [
            Odd(**{f.name: getattr(site, f.name) for f in fields(Site)}, error=error)
            if site.name == odd
            else site
            for site in simulation.sites
        ]
        yield replace(simulation, sites=tuple(sites))


@contextmanager
def unreadable(share: Assignment) -> Generator[InProcessEngine, None, None]:
    raise BadImage(f"{share[0]}/t1.nii.gz: cannot be read; correct it.")
    yield


@dataclass
class Heard:
    """What an engine tells."""

    replies: list[str] = field(default_factory=list[str])
    cards: list[FailureCard] = field(default_factory=list[FailureCard])

    def hear(self, request: Request, reply: Reply) -> None:
        self.replies.append(reply.site)


@contextmanager
def three_sites(
    folder: Path, odd: str, error: Exception | None = None
) -> Generator[tuple[ProcessPoolEngine, Heard], None, None]:
    """Three sites in two processes: alder and cedar in one, birch in the other."""
    host, heard = partial(rehearsed, tiny(sites=3), folder, odd, error), Heard()
    with start_workers([("alder", "cedar"), ("birch",)], host) as crew:
        yield ProcessPoolEngine(NAMES, crew, heard.hear, heard.cards.append), heard


def names(replies: list[Reply]) -> list[str]:
    return [reply.site for reply in replies]


def test_a_failure_crosses_with_its_whole_card_and_a_quorum_goes_on_without_the_site(
    tmp_path: Path,
):
    with three_sites(tmp_path, "birch", ValueError("no such slice")) as (engine, heard):
        assert names(engine.ask(dict.fromkeys(("cedar", "alder"), Describe()))) == [
            "alder",
            "cedar",
        ]
        with pytest.raises(SiteFailed) as stopped:
            engine.ask(dict.fromkeys(NAMES, ORDER))
        card = stopped.value.card
        assert replace(card, trace=()) == FailureCard(
            "birch", 1, "train", "ValueError", "no such slice"
        )
        assert card.trace[-1].startswith("test_workers.py:")
        heard.replies.clear()
        described = engine.ask(dict.fromkeys(NAMES, Describe()))
        assert [(r.site, r.ready is not None) for r in described] == [(n, True) for n in NAMES]
        replies = engine.ask(dict.fromkeys(NAMES, ORDER), quorum=Quorum(2))
        assert names(replies) == ["alder", "cedar"]
        assert heard.replies == [*NAMES, "alder", "cedar"]
        assert [card.site for card in heard.cards] == ["birch"]
        with pytest.raises(SiteFailed, match="'birch' failed in round 1"):
            engine.ask(dict.fromkeys(NAMES, ORDER), quorum=Quorum(3))


def test_a_process_that_is_killed_fails_its_sites_at_once_and_no_others(tmp_path: Path):
    """It is killed in the middle of an hour's work; the other process goes on."""
    with three_sites(tmp_path, "birch") as (engine, heard):
        engine.ask(dict.fromkeys(NAMES, Describe()))
        pid = engine.workers[1].process.pid
        assert pid is not None
        engine.workers[1].begin("birch", ORDER, ())
        os.kill(pid, signal.SIGKILL)
        began = time.perf_counter()
        replies = engine.ask(dict.fromkeys(NAMES, ORDER), quorum=Quorum(1))
        assert names(replies) == ["alder", "cedar"]
        [card] = heard.cards
        assert (card.site, card.stage, card.error) == ("birch", "train", "WorkerDied")
        assert card.message == "its process ended with exit code -9"
        assert "--workers" in card.hint
        with pytest.raises(SiteFailed, match=r"'birch' failed in round 0 \(describe\): WorkerDied"):
            engine.ask(dict.fromkeys(NAMES, Describe()))
        assert time.perf_counter() - began < 60


def test_what_is_wrong_with_a_sites_images_comes_back_as_itself():
    with start_workers([("alder",), ("birch",)], unreadable) as crew:
        engine = ProcessPoolEngine(("alder", "birch"), crew, SilentListener().on_reply)
        with pytest.raises(BadImage, match=r"birch/t1\.nii\.gz: cannot be read"):
            engine.ask({"birch": Describe()})


def test_no_process_is_left_when_the_work_is_stopped(tmp_path: Path):
    """In the middle of an hour's work, by an exception here."""
    processes: list[BaseProcess] = []

    def stopped() -> None:
        with three_sites(tmp_path, "birch") as (engine, _):
            processes.extend(worker.process for worker in engine.workers)
            engine.ask(dict.fromkeys(NAMES, Describe()))
            engine.workers[1].begin("birch", ORDER, ())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2
    assert mp.active_children() == []


def test_one_process_is_this_one(tmp_path: Path):
    study = tiny(sites=2)
    federation = built(study, tmp_path)
    with distribute(federation, study, (), tmp_path, SilentListener(), processes=1) as same:
        assert same is federation
    assert mp.active_children() == []


def test_sites_are_balanced_by_their_training_examples(tmp_path: Path):
    study = tiny(sites=3)
    many = replace(study.site[1], patients=Patients(train=5, validation=1, test=2))
    study = replace(study, site=(study.site[0], many, study.site[2]))
    federation = built(study, tmp_path)
    with distribute(federation, study, (), tmp_path, SilentListener(), processes=2) as spread:
        assert isinstance(spread.sites, ProcessPoolEngine)
        assert [worker.share for worker in spread.sites.workers] == [("birch",), ("alder", "cedar")]


@contextmanager
def running(folder: Path) -> Generator["subprocess.Popen[str]", None, None]:
    """A run with two workers, in a process group of its own, in its second round."""
    command = [PROGRAM, "run", TINY, "--out", folder, "--workers", "2", "--rounds", "999"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    try:
        wait_for(folder, lambda told: any(isinstance(e, SiteTrained) for e in told))
        yield process
    finally:
        process.kill()
        process.communicate()


def last_words(process: "subprocess.Popen[str]") -> str:
    """What a run says on stderr until all its processes, which share it, are gone."""
    return process.communicate(timeout=60)[1]


def test_ctrl_c_stops_all_processes_with_one_sentence(tmp_path: Path):
    with running(tmp_path) as process:
        os.killpg(process.pid, signal.SIGINT)
        said = last_words(process)
    assert process.returncode == 1
    assert "every finished round is saved" in said
    assert "Traceback" not in said


def test_workers_end_with_a_coordinator_that_is_killed(tmp_path: Path):
    with running(tmp_path) as process:
        process.kill()
        said = last_words(process)
    assert "Traceback" not in said


def stop_after_a_round(event: Event) -> None:
    if isinstance(event, RoundFinished):
        raise KeyboardInterrupt


def test_a_run_begun_with_two_workers_is_resumed_without_to_the_same_bits(tmp_path: Path):
    study = tiny("rounds=2", sites=2)
    run(study, tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "two", listeners=[stop_after_a_round], workers=2)
    run(study, tmp_path / "two", resume=True)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert rows(tmp_path / "two" / "scores.csv") == rows(tmp_path / "one" / "scores.csv")
