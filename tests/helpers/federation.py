"""Tiny federations of real sites, and what tests ask of them."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from grandrounds.algorithms.topology import EVERYONE, Links, Quorum, RoundResult
from grandrounds.core.errors import FailureCard, SiteFailed
from grandrounds.core.events import Event
from grandrounds.core.messages import Reply, Request
from grandrounds.core.state import State
from grandrounds.core.weights import first_not_finite
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.runs.build import Federation, build_federation
from grandrounds.runs.costs import plan_run
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.site_data import open_sites
from grandrounds.site import model_state as kept
from grandrounds.site.model_state import SiteStore
from grandrounds.site.site import Promise, Site
from grandrounds.study.file import read_study
from grandrounds.study.study import Study
from grandrounds.tasks import Synthesis

NAME_RULE = (
    "a name has letters (a-z, A-Z), digits, '-', '_' and '.', begins with a letter or a digit, and "
    "does not end with '.'"
)
TINY = Path(__file__).parents[2] / "studies" / "tiny.toml"


def tiny(*overrides: str, sites: int = 4) -> Study:
    """The study of quick tests, with the first few of its sites."""
    study = read_study(TINY, overrides)
    return replace(study, site=study.site[:sites])


def synthesis_of(study: Study) -> Synthesis:
    """A study's task, which is synthesis."""
    assert isinstance(study.task, Synthesis)
    return study.task


def ignore(request: Request, reply: Reply) -> None:
    """Hear a reply and do nothing."""


class Nobody:
    """Hears and does nothing."""

    def on_reply(self, request: Request, reply: Reply) -> None:
        """Hear a reply."""

    def on_missing(self, card: FailureCard) -> None:
        """Hear of an absence."""
        raise SiteFailed(card)


NOBODY = Nobody()


def built(study: Study, folder: Path) -> Federation:
    """A study's federation, before its first round."""
    return build_federation(plan_run(study), open_sites(study, ()), folder, study.machine(), NOBODY)


def fail_when(patch: pytest.MonkeyPatch, fails: Callable[[str, Request], bool]) -> None:
    """Let sites fail at the requests that `fails` says, by their name."""
    begin = Site.begin

    def fallible(site: Site, request: Request) -> Promise:
        if fails(site.name, request):
            raise ValueError("out of luck")
        return begin(site, request)

    patch.setattr(Site, "begin", fallible)


def stopped(study: Study, folder: Path, moment: Callable[[Event], bool]) -> None:
    """Run a study until a moment, as Ctrl-C would stop it."""

    def stop(event: Event) -> None:
        if moment(event):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, folder, listeners=[stop])


@dataclass(frozen=True)
class Spy:
    """Sites, and all that was said between them and the coordinator."""

    sites: InProcessEngine
    asked: list[tuple[str, Request]] = field(default_factory=list[tuple[str, Request]])
    replies: list[Reply] = field(default_factory=list[Reply])

    links = Links.MESH

    @property
    def names(self) -> tuple[str, ...]:
        """Give the roster."""
        return self.sites.names

    def ask(
        self,
        requests: Mapping[str, Request],
        *,
        deliver_to: Sequence[str] = (),
        quorum: Quorum = EVERYONE,
    ) -> list[Reply]:
        """Note the requests and the replies."""
        self.asked.extend(requests.items())
        replies = self.sites.ask(requests, deliver_to=deliver_to, quorum=quorum)
        self.replies.extend(replies)
        return replies


def with_sites(federation: Federation, *sites: Site) -> Federation:
    """The same federation of other sites."""
    return replace(federation, sites=InProcessEngine(sites, ignore))


def played(federation: Federation, rounds: int) -> list[RoundResult]:
    """The outcome of every round from the first."""
    outcomes: list[RoundResult] = []
    state = federation.start
    for _ in range(rounds):
        outcomes.append(federation.topology.round(state, federation.sites, federation.method))
        state = outcomes[-1].state
    return outcomes


def private_weights(site: Site, round: int) -> dict[str, Tensor]:
    """What a site keeps of its model after a round, without optimiser state."""
    saved, _ = SiteStore(site.folder).private.load(round)
    return kept.model_tensors(saved)


def model_of(site: Site, state: State) -> dict[str, Tensor]:
    """All tensors of a site's model: its own, and the last shared ones."""
    return private_weights(site, state.round) | state.weights


def assert_trained(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Nothing is NaN or infinite, and every part moved: two dead runs agree, too."""
    assert first_not_finite(after) is None
    assert after
    still = {part_of(name) for name in after} - {part_of(name) for name in differing(before, after)}
    assert not still, f"did not move: {sorted(still)}"


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """The names that both have, with other bits."""
    return [n for n, t in second.items() if n in first and not torch.equal(first[n], t)]


def part_of(name: str) -> str:
    """The part of the model that a tensor belongs to, for example generator.decoder."""
    return ".".join(name.split(".")[:2])


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> Sequence[str]:
    """The digest of every round of a run folder."""
    return [row["digest"] for row in rows(folder / "digests.csv")]
