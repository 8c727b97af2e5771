"""A site may join a run that goes on: from its first round on it trains with the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from grandrounds.algorithms.topology import EVERYONE, Links, Quorum, Sites
from grandrounds.core.errors import BadFolder
from grandrounds.core.messages import Reply, Request
from grandrounds.core.sentence import phrase
from grandrounds.core.state import NO_SCORE, State
from grandrounds.core.weights import Weights
from grandrounds.study.study import Study


@dataclass(frozen=True)
class JoinedSites:
    """The sites of an engine that have joined a run; a topology knows no others."""

    engine: Sites
    names: tuple[str, ...]

    @property
    def links(self) -> Links:
        return self.engine.links

    def ask(
        self,
        requests: Mapping[str, Request],
        *,
        deliver_to: Sequence[str] = (),
        quorum: Quorum = EVERYONE,
    ) -> list[Reply]:
        """Send each request to its site; see `Sites.ask`."""
        return self.engine.ask(requests, deliver_to=deliver_to, quorum=quorum)


def joined_sites(study: Study, round: int, engine: Sites) -> Sites:
    """Return the sites that take part in a round: all of them, unless some join later."""
    awaited = study.awaited(round)
    if not awaited:
        return engine
    return JoinedSites(engine, tuple(name for name in engine.names if name not in awaited))


def joining(study: Study, round: int) -> tuple[str, ...]:
    """Return the sites that join a run in this round, the first round's aside."""
    return tuple(name for name in study.awaited(round - 1) if name not in study.awaited(round))


def with_awaited(state: State, study: Study) -> State:
    """Return a state that says of every site that joins later that it took part in no round."""
    seen = dict.fromkeys(study.awaited(state.round), 0)
    return replace(state, seen={**state.seen, **seen}) if seen else state


def scored_anew(state: State, study: Study) -> State:
    """Forget the best score where sites join in the next round: it was of fewer sites."""
    return replace(state, best_score=NO_SCORE) if joining(study, state.round + 1) else state


def check_model_fits(held: Weights, expected: Weights, saved_in: object) -> None:
    """Refuse to go on with a model of other sizes than the study's. Raises `BadFolder`.

    A network that is sized by the roster grows with every site. Where the sites start apart nothing
    is `expected` before round 1, and there is nothing to compare.
    """
    different = [
        name
        for name, tensor in expected.items()
        if name not in held or held[name].shape != tensor.shape
    ]
    if different:
        raise BadFolder(
            f"{saved_in}: the model of its run does not fit this study: {different[0]} has another "
            "size, for the network grows with the roster. A site can join such a run only if the "
            "study names it from the beginning, with the round in which it joins.",
            safe=phrase("the model of its run does not fit this study"),
        )
