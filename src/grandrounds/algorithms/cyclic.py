"""In cyclic weight transfer one model visits every site in turn."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from grandrounds.algorithms.method import Method, Need, broadcast
from grandrounds.algorithms.topology import (
    EVERYONE,
    Links,
    RoundCost,
    RoundLoad,
    RoundResult,
    Sites,
    unasked,
    undeliverable,
)
from grandrounds.core.messages import Describe, Evaluate, Reply, Request, Train, Tune
from grandrounds.core.seeds import seed_for
from grandrounds.core.state import State
from grandrounds.core.weights import select


@dataclass(frozen=True)
class Cyclic:
    """The model travels from site to site; a round is one cycle. Chang et al. 2018.

    `order`: the roster's, reversed in every other cycle, or shuffled for each. `turn` counts local
    "epochs" or "steps"; `length` is how many (0: training.epochs). `proportional` gives a site as
    many steps as its share of the examples asks for, with `length` as the mean (Balachandar et al.
    2020). `optimizer` = "travels" hands the optimiser's state on with the model. `monitor` scores
    the travelling model at every site after each turn, every so many cycles (0: never): what is
    learned at one site may be forgotten at the next.
    """

    order: Literal["fixed", "alternate", "shuffled"] = "fixed"
    turn: Literal["epochs", "steps"] = "epochs"
    length: int = 0
    proportional: bool = False
    optimizer: Literal["stays", "travels"] = "stays"
    monitor: int = 1
    seed: int = 0

    averages = False
    needs = Links.STAR
    model_at_sites = False
    quorum = EVERYONE

    @property
    def lacks(self) -> frozenset[Need]:
        return frozenset({"side by side"})

    @property
    def moments_travel(self) -> bool:
        return self.optimizer == "travels"

    def in_a_row(self, sites: int) -> int:
        return sites

    def refuses(
        self, request: Request, deliver_to: tuple[str, ...], roster: tuple[str, ...]
    ) -> str:
        problem = unasked(request, (Train, Tune), "cyclic") or undeliverable(deliver_to)
        if problem or not isinstance(request, Train):
            return problem
        if self.turn == "epochs":
            said = request.epochs == self.length and not request.steps
        elif self.proportional:  # at most all steps, if this site had all the examples
            said = not request.epochs and 1 <= request.steps <= self.length * len(roster)
        else:
            said = not request.epochs and request.steps == self.length
        return "" if said else "a turn is as long as the study says"

    def round(self, state: State, sites: Sites, method: Method) -> RoundResult:
        """Let each site train in turn, from the model of the one before it."""
        number = state.round + 1
        turns = self.turns(number, sites)
        replies: dict[str, Reply] = {}
        travelling = state
        for name in self.order_of(number, sites.names):
            request = Train(
                round=number,
                since=state.round,
                epochs=turns[name].epochs,
                steps=turns[name].steps,
                keep=state.best_round,
                weights=broadcast(method, travelling, name, moments=self.moments_travel),
            )
            [replies[name]] = sites.ask({name: request})
            travelling = _state_after(replies[name], travelling)
            self._score_everywhere(number, name, travelling, sites, set(replies), method)
        state = replace(travelling, round=number)
        in_turn = tuple((name,) for name in replies)
        return RoundResult(state, [replies[name] for name in sites.names], groups=in_turn)

    def order_of(self, round: int, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the sites in the order of a cycle's turns."""
        if self.order == "alternate" and round % 2 == 0:
            return names[::-1]
        if self.order == "shuffled":
            return tuple(Random(seed_for(self.seed, "order", round)).sample(names, len(names)))
        return names

    def turns(self, round: int, sites: Sites) -> dict[str, "TurnLength"]:
        """Return the length of each site's turn."""
        if self.turn == "epochs":
            return dict.fromkeys(sites.names, TurnLength(epochs=self.length))
        if not self.proportional:
            return dict.fromkeys(sites.names, TurnLength(steps=self.length))
        replies = sites.ask({name: Describe(round=round) for name in sites.names})
        mean = sum(reply.examples for reply in replies) / len(replies)
        steps = {r.site: max(1, round_half_up(self.length * r.examples / mean)) for r in replies}
        return {name: TurnLength(steps=steps[name]) for name in sites.names}

    def _score_everywhere(
        self,
        round: int,
        after: str,
        state: State,
        sites: Sites,
        trained: set[str],
        method: Method,
    ) -> None:
        if not self.monitor or round % self.monitor:
            return
        sites.ask(
            {
                name: Evaluate(
                    round=round,
                    since=round if name in trained else round - 1,
                    split="validation",
                    after=after,
                    weights=method.averaging.of_site(state.weights, name),
                )
                for name in sites.names
            }
        )

    def evaluate(self, sites: Sites, orders: Mapping[str, Evaluate]) -> list[Reply]:
        """Send the model to the sites, and return their scores."""
        return sites.ask(orders)

    def account(self, load: RoundLoad) -> RoundCost:
        """Return the cost of each turn's model in and out, of the monitor and of the validation."""
        scored = load.validations + (load.sites / self.monitor if self.monitor else 0)
        return RoundCost(
            int(load.sites * (load.both_ways + scored * load.model)),
            "the sum of all sites' times",
            {
                "coordinator": "the model after each site's turn, which is that site's own update",
                "sites": "the model as the site before left it",
            },
            groups=self.in_a_row(load.sites),
        )


@dataclass(frozen=True)
class TurnLength:
    """The length of a site's turn; 0 epochs are those of the study."""

    epochs: int = 0
    steps: int = 0


def _state_after(reply: Reply, state: State) -> State:
    """Hand on a site's model, and what travels beside it: the optimiser's state and sets."""
    weights = select(reply.weights, lambda name: "/" not in name)
    beside = select(reply.weights, lambda name: "/" in name)
    return replace(state, weights=state.weights | weights, memory=state.memory | beside)


def round_half_up(value: float) -> int:
    """Round to the nearest integer, and halves upwards."""
    return int(value + 0.5)
