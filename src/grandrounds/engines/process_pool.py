"""The sites of a study are hosted by several processes, each at the other end of a pipe.

A `ProcessPoolExecutor` would not do. Where a worker is killed in the middle of a large reply, it
waits for the rest for ever (Python 3.11: this process keeps the writing end of the pipe open, too);
it names no exit code, logs what a site's data are refused with and does not return it, and at the
end lets a worker finish what it has begun. A pipe of one's own ends with its worker.
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
    """To a worker: a site and its request as bytes; with peers to deliver to, a receipt returns."""

    site: str
    request: bytes
    deliver_to: Assignment = ()


@dataclass(frozen=True)
class WorkerDelivery:
    """To a worker: an update as bytes, for the mailboxes of those of these sites that it hosts."""

    sites: Assignment
    update: bytes


@dataclass(frozen=True)
class WorkerReply:
    """From a worker: a reply as bytes, and the update that it is the receipt of, if it is one."""

    reply: bytes
    update: bytes = b""


class WorkerDied(RuntimeError):  # noqa: N818 - the word that a failure card shows
    """A worker's process ended without an answer."""


@dataclass
class Worker:
    """One process that hosts a share of the sites and does one thing at a time."""

    share: Assignment
    process: BaseProcess
    link: Link
    pending: tuple[str, Request] | None = None

    def begin(self, site: str, request: Request, deliver_to: Assignment) -> None:
        """Let a site answer; `result` gives what comes of it."""
        if self.pending:  # an earlier question, given up when another site failed
            self.result()
        self.pending = (site, request)
        self.send(WorkerRequest(site, encode(request), deliver_to))

    def send(self, task: WorkerRequest | WorkerDelivery) -> None:
        """Hand a task over; where the process has ended, `result` tells."""
        with suppress(ConnectionError):
            self.link.send(task)

    def result(self) -> tuple[str, WorkerReply | Exception]:
        """Wait for the site's answer or failure; a process that has ended fails at once."""
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
        """End the process, wherever it is: what it keeps on disk is there whole or not at all."""
        self.process.kill()
        self.process.join()
        self.link.close()


@contextmanager
def start_workers(
    shares: Iterable[Assignment], host: WorkerSites
) -> Generator[tuple[Worker, ...], None, None]:
    """Start a process for each share, which `host` opens there; in the end all are gone."""
    crew: list[Worker] = []
    try:
        with _interrupts_held():
            for share in shares:
                crew.append(_started(share, host))  # noqa: PERF401 - each is ended, come what may
        yield tuple(crew)
    finally:
        for worker in crew:
            worker.end()


@contextmanager
def _interrupts_held() -> Generator[None, None, None]:
    """Hold Ctrl-C back; processes started meanwhile never take it: the coordinator ends them."""
    resource_tracker.ensure_running()  # its own start would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _started(share: Assignment, host: WorkerSites) -> Worker:
    ours, theirs = SPAWN.Pipe()
    process = start_process(_work, share, host, theirs)
    theirs.close()
    return Worker(share, process, ours)


def _work(share: Assignment, host: WorkerSites, link: Link) -> None:
    """Open a share of the sites, and do what is asked for as long as the coordinator lives."""
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
        [reply] = sites.ask({order.site: cast(Request, decode(order.request))})
    except (SiteFailed, BadInput) as failure:
        return failure
    if not order.deliver_to:
        return WorkerReply(encode(reply))
    peers = set(order.deliver_to) - {order.site}
    return WorkerReply(encode(reply.receipt(num_peers=len(peers))), encode(reply))


def assign_sites(examples: Mapping[str, int], workers: int) -> tuple[Assignment, ...]:
    """Share sites out, the largest first, each to the worker that has the least to do so far.

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

    Messages cross as bytes of the codec; an update for peers is not decoded on its way. `on_reply`
    hears of every reply in roster order, as soon as those before it are there; `on_failure` of
    every site that a quorum goes on without.
    """

    names: tuple[str, ...]
    crew: tuple[Worker, ...]
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
        """Let the sites answer, and give their replies in roster order.

        Raises `SiteFailed` with the failure card of the first that fails, unless the quorum can do
        without it, and the `BadInput` that a worker met, when it opened its sites too.
        """
        roll, updates = ReplyCollector(quorum, self.on_reply, self.on_failure), list[bytes]()
        answers = self._answers(requests, tuple(deliver_to))
        replies = roll.collect(self.names, requests, _opened(answers, updates))
        self._deliver([WorkerDelivery(tuple(deliver_to), update) for update in updates])
        return replies

    def _answers(
        self, requests: Mapping[str, Request], deliver_to: Assignment
    ) -> Iterator[tuple[str, WorkerReply | Exception]]:
        """Keep every worker busy, and yield what each site answers as it comes."""
        crew = {worker.link: worker for worker in self.crew}
        todo = {link: iter([n for n in w.share if n in requests]) for link, w in crew.items()}

        def begin(links: Iterable[Link]) -> None:
            for link in links:
                site = next(todo[link], None)
                if site is not None:
                    crew[link].begin(site, requests[site], deliver_to)

        begin(crew)
        while busy := [link for link, worker in crew.items() if worker.pending]:
            ready = cast(list[Link], wait(busy))
            came = [crew[link].result() for link in ready]
            begin(ready)
            yield from came

    def _deliver(self, mail: Iterable[WorkerDelivery]) -> None:
        """Forward updates; every worker has answered, so that each takes its mail at once."""
        for letter in mail:
            for worker in self.crew:
                if set(letter.sites) & set(worker.share):
                    worker.send(letter)


def _opened(
    answers: Iterable[tuple[str, WorkerReply | Exception]], updates: list[bytes]
) -> Iterator[tuple[str, Result]]:
    """Decode replies as they come, and lay the updates that go to peers aside."""
    for site, answer in answers:
        if isinstance(answer, Exception):
            yield site, answer
            continue
        updates += [answer.update] if answer.update else []
        yield site, cast(Reply, decode(answer.reply))
