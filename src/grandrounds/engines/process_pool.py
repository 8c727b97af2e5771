"""Several worker processes host the sites of a study, each at the other end of a pipe.

A `ProcessPoolExecutor` does not suffice. Where a worker is killed in the middle of a large reply,
it waits for the rest for ever (Python 3.11: this process has the writing end of the pipe open,
too); it names no exit code, logs the error that a site's data are refused with instead of returning
it, and at the end lets a worker finish its task. A pipe for each worker closes with it.
"""

import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeAlias, cast

from grandrounds.algorithms.topology import EVERYONE, Links, Quorum
from grandrounds.core.errors import BadInput, SiteFailed
from grandrounds.core.failures import failure_card
from grandrounds.core.messages import Reply, Request, decode, encode
from grandrounds.core.processes import SPAWN, start_process
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.engines.replies import OnFailure, OnReply, ReplyCollector, Result, fail_if_missing

Assignment: TypeAlias = tuple[str, ...]
WorkerSites: TypeAlias = Callable[[Assignment], AbstractContextManager[InProcessEngine]]
Link: TypeAlias = "Connection[object, object]"


@dataclass(frozen=True)
class WorkerRequest:
    """To a worker: a site and its request as bytes; with `deliver_to` a receipt returns."""

    site: str
    request: bytes
    deliver_to: Assignment = ()


@dataclass(frozen=True)
class WorkerDelivery:
    """To a worker: an update as bytes, for the mailboxes of these sites, where it hosts them."""

    sites: Assignment
    update: bytes


@dataclass(frozen=True)
class WorkerReply:
    """From a worker: a reply as bytes, and the update if the reply is a receipt."""

    reply: bytes
    update: bytes = b""


class WorkerDied(RuntimeError):  # noqa: N818 - the word that a failure card shows
    """A worker's process ended without an answer."""


@dataclass
class Worker:
    """One process that hosts its share of the sites and does one task at a time."""

    share: Assignment
    process: BaseProcess
    link: Link
    pending: tuple[str, Request] | None = None

    def begin(self, site: str, request: Request, deliver_to: Assignment) -> None:
        """Let a site answer; `result` returns the answer."""
        if self.pending:  # an earlier request, abandoned when another site failed
            self.result()
        self.pending = (site, request)
        self.send(WorkerRequest(site, encode(request), deliver_to))

    def send(self, task: WorkerRequest | WorkerDelivery) -> None:
        """Send a task; if the process has ended, `result` says so."""
        with suppress(ConnectionError):
            self.link.send(task)

    def result(self) -> tuple[str, WorkerReply | Exception]:
        """Wait for the site's answer or failure; where the process has ended, fail at once."""
        assert self.pending is not None
        site, request = self.pending
        self.pending = None
        try:
            return site, cast(WorkerReply | Exception, self.link.recv())
        except (EOFError, OSError):  # the latter in the middle of an answer
            self.process.join()
            error = WorkerDied(f"its process ended with exit code {self.process.exitcode}")
            return site, SiteFailed(failure_card(site, request, error, str(error)))

    def end(self) -> None:
        """Kill the process at any point: its files on disk are always complete or absent."""
        self.process.kill()
        self.process.join()
        self.link.close()


@contextmanager
def start_workers(
    shares: Iterable[Assignment], host: WorkerSites
) -> Generator[tuple[Worker, ...], None, None]:
    """Start a process for each share, whose sites `host` opens there; end all of them on exit."""
    workers: list[Worker] = []
    try:
        with _interrupts_blocked():
            for share in shares:
                workers.append(_start(share, host))  # noqa: PERF401 - each is ended, even after an error
        yield tuple(workers)
    finally:
        for worker in workers:
            worker.end()


@contextmanager
def _interrupts_blocked() -> Generator[None, None, None]:
    """Block Ctrl-C here and in processes started meanwhile, which the coordinator ends itself."""
    resource_tracker.ensure_running()  # starting it later would unblock Ctrl-C again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(share: Assignment, host: WorkerSites) -> Worker:
    ours, theirs = SPAWN.Pipe()
    process = start_process(_work, share, host, theirs)
    theirs.close()
    return Worker(share, process, ours)


def _work(share: Assignment, host: WorkerSites, link: Link) -> None:
    """Open a share of the sites, and do tasks for as long as the coordinator lives."""
    with suppress(EOFError, ConnectionError):
        try:
            with host(share) as sites:
                while True:
                    _do(sites, cast(WorkerRequest | WorkerDelivery, link.recv()), link)
        except BadInput as error:
            link.send(error)


def _do(sites: InProcessEngine, task: WorkerRequest | WorkerDelivery, link: Link) -> None:
    if isinstance(task, WorkerRequest):
        link.send(_result_of(sites, task))
        return
    update = cast(Reply, decode(task.update))
    for site in sites.sites:
        if site.name in task.sites:
            site.receive(update)


def _result_of(sites: InProcessEngine, order: WorkerRequest) -> WorkerReply | Exception:
    try:
        request = cast(Request, decode(order.request))
        reply, receipt = sites.answered_by(order.site, request, order.deliver_to)
    except (SiteFailed, BadInput) as failure:
        return failure
    if receipt is None:
        return WorkerReply(encode(reply))
    return WorkerReply(encode(receipt), encode(reply))


def assign_sites(examples: Mapping[str, int], workers: int) -> tuple[Assignment, ...]:
    """Assign sites to workers, the largest first, each to the one with the fewest examples so far.

    `examples` counts what each site trains on. Each share is in roster order; none is empty.
    """
    roster = list(examples)
    shares: list[list[str]] = [[] for _ in range(min(workers, len(roster)))]
    for name in sorted(roster, key=lambda name: -examples[name]):
        min(shares, key=lambda share: (sum(examples[n] for n in share), len(share))).append(name)
    return tuple(tuple(sorted(share, key=roster.index)) for share in shares)


@dataclass(frozen=True)
class ProcessPoolEngine:
    """The sites of a study, hosted by several processes; each process trains one site at a time.

    Messages are encoded for the pipes; an update for peers is not decoded on its way. `on_reply` is
    called with every reply in roster order, as soon as those before it are there, `on_failure` with
    the card of every site that a quorum continues without.
    """

    names: tuple[str, ...]
    workers: tuple[Worker, ...]
    on_reply: OnReply
    on_failure: OnFailure = fail_if_missing

    links = Links.MESH

    def ask(
        self,
        requests: Mapping[str, Request],
        *,
        deliver_to: Sequence[str] = (),
        quorum: Quorum = EVERYONE,
    ) -> list[Reply]:
        """Let the sites answer, and return their replies in roster order.

        Raises `SiteFailed` with the failure card of the first that fails, unless the quorum can do
        without it, and the `BadInput` of a worker, from opening its sites too.
        """
        collector, updates = ReplyCollector(quorum, self.on_reply, self.on_failure), list[bytes]()
        answers = self._answers(requests, tuple(deliver_to))
        replies = collector.collect(self.names, requests, _decoded(answers, updates))
        self._deliver([WorkerDelivery(tuple(deliver_to), update) for update in updates])
        return replies

    def _answers(
        self, requests: Mapping[str, Request], deliver_to: Assignment
    ) -> Iterator[tuple[str, WorkerReply | Exception]]:
        """Give every worker its next site at once, and yield answers as they arrive."""
        by_link = {worker.link: worker for worker in self.workers}
        todo = {link: iter([n for n in w.share if n in requests]) for link, w in by_link.items()}

        def begin(links: Iterable[Link]) -> None:
            for link in links:
                site = next(todo[link], None)
                if site is not None:
                    by_link[link].begin(site, requests[site], deliver_to)

        begin(by_link)
        while busy := [link for link, worker in by_link.items() if worker.pending]:
            ready = cast(list[Link], wait(busy))
            answers = [by_link[link].result() for link in ready]
            begin(ready)
            yield from answers

    def _deliver(self, deliveries: Iterable[WorkerDelivery]) -> None:
        """Forward updates; every worker has answered, so that each receives them at once."""
        for delivery in deliveries:
            for worker in self.workers:
                if set(delivery.sites) & set(worker.share):
                    worker.send(delivery)


def _decoded(
    answers: Iterable[tuple[str, WorkerReply | Exception]], updates: list[bytes]
) -> Iterator[tuple[str, Result]]:
    """Decode replies as they arrive, and collect the updates for peers."""
    for site, answer in answers:
        if isinstance(answer, Exception):
            yield site, answer
            continue
        updates += [answer.update] if answer.update else []
        yield site, cast(Reply, decode(answer.reply))
