"""The sites in several processes at once, a share of them in each: the engine of a workstation.

Processes and not threads, as small networks are bound by the interpreter, which threads would
share: on two cores two processes play a round 1.6 times as fast as one (benchmarks/workers.py).
Each process has training.threads, or where that is 0 its share of the cores.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import cast

from grandrounds.engines.crew import Link, Mail, Result, Share, Worker
from grandrounds.engines.gather import given, in_turn
from grandrounds.engines.quorum import OnFailure, Roll, untold
from grandrounds.engines.simulation import OnReply
from grandrounds.messages import Reply, Request, decode
from grandrounds.topologies.topology import EVERYONE, Links, Quorum


def shared_out(examples: Mapping[str, int], workers: int) -> tuple[Share, ...]:
    """Share sites out, the largest first, each to the worker that has the least to do so far.

    `examples` counts what each site trains on. Each share is in roster order; none is empty.
    """
    roster = list(examples)
    shares: list[list[str]] = [[] for _ in range(min(workers, len(roster)))]
    for name in sorted(roster, key=lambda name: -examples[name]):
        min(shares, key=lambda share: (sum(examples[n] for n in share), len(share))).append(name)
    return tuple(tuple(sorted(share, key=roster.index)) for share in shares)


@dataclass(frozen=True)
class Workers:
    """The sites of a study, hosted by several processes; each process trains one site at a time.

    Messages cross as bytes of the codec; an update for peers is not decoded on its way. `on_reply`
    hears of every reply in roster order, as soon as those before it are there; `on_failure` of
    every site that a quorum goes on without.
    """

    names: tuple[str, ...]
    crew: tuple[Worker, ...]
    on_reply: OnReply
    on_failure: OnFailure = untold

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
        roll, mail = Roll(quorum, self.on_failure), list[Mail]()
        results = self._results(requests, tuple(deliver_to))
        hurried = quorum.least is None
        for site, result in in_turn(self.names, requests, results, hurried=hurried):
            with roll.call():
                answer = given(result)
                mail += [Mail(tuple(deliver_to), answer.update)] if answer.update else []
                reply = cast(Reply, decode(answer.reply))
                self.on_reply(requests[site], reply)
                roll.note(requests[site], reply)
        self._deliver(mail)
        return roll.answered()

    def _results(
        self, requests: Mapping[str, Request], deliver_to: Share
    ) -> Iterator[tuple[str, Result]]:
        """Keep every worker busy, and give results as they come."""
        crew = {worker.link: worker for worker in self.crew}
        todo = {link: iter([n for n in w.share if n in requests]) for link, w in crew.items()}

        def begin(links: Iterable[Link]) -> None:
            for link in links:
                site = next(todo[link], None)
                if site is not None:
                    crew[link].begin(site, requests[site], deliver_to)

        begin(crew)
        while busy := [link for link, worker in crew.items() if worker.owes]:
            ready = cast(list[Link], wait(busy))
            came = [crew[link].result() for link in ready]
            begin(ready)
            yield from came

    def _deliver(self, mail: Iterable[Mail]) -> None:
        """Forward updates; every worker has answered, so that each takes its mail at once."""
        for letter in mail:
            for worker in self.crew:
                if set(letter.sites) & set(worker.share):
                    worker.send(letter)
