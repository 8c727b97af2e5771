"""Split learning: sites keep the first stages of a network, maybe the last; a server the rest."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, Protocol

from grandrounds.algorithms.methods import Method
from grandrounds.algorithms.topology import (
    EVERYONE,
    CutTraffic,
    Links,
    RoundCost,
    RoundLoad,
    RoundResult,
    Sites,
)
from grandrounds.core.messages import Backward, Evaluate, Forward, LocalPlan, Reply, Tail
from grandrounds.core.seeds import seed_for
from grandrounds.core.state import State
from grandrounds.core.weights import (
    OPTIMIZER,
    Weights,
    name_starts,
    select,
    with_prefix,
    without_prefix,
)

KIB = 2**10
SERVER_STATE = "server/"  # before the names of the server's optimiser state


class ServerPart(Protocol):
    """What the server computes; what crosses the cut comes and goes as it is on the wire."""

    def holds(self, name: str) -> bool:
        """Tell whether a tensor is the server's."""
        ...

    def load(self, weights: Weights, moments: Weights, round: int) -> None:
        """Begin a turn from these weights and this state of the optimiser."""
        ...

    def weights(self) -> Weights:
        """Give the server's part."""
        ...

    def moments(self) -> Weights:
        """Give the state of its optimiser."""
        ...

    def forward(self, came: Weights, site: str, round: int, batch: int) -> Weights:
        """Run the server's stages on what came from a site's front; give what goes to its end."""
        ...

    def backward(self, came: Weights) -> Weights:
        """Backpropagate the gradients from a site's end, and step; give those for its front."""
        ...

    def learn(self, came: Weights) -> Weights:
        """Judge the output by labels that came with it, and step; give gradients for the front."""
        ...

    def losses(self) -> Mapping[str, float]:
        """Give the turn's mean losses, where the labels came here. Raises `RunFailed`."""
        ...

    def predict(self, came: Weights) -> Weights:
        """Run the server's stages in evaluation mode."""
        ...


@dataclass(frozen=True)
class ServerTurn:
    """What a site's turn left: its reply, the server's part, and that part's optimiser state."""

    reply: Reply
    served: Weights
    moments: Weights


@dataclass(frozen=True)
class Split:
    """The network is cut at a named stage. Gupta and Raskar 2018; Vepakomma et al. 2018.

    `cut` names the first stage that is the server's, `back` the first one that is the site's again
    (U-shaped; "": the server runs to the end). The loss is found where the `labels` are: at the
    site, or at the "server", to which they then go up. `variant`: "sequential" hands the site's
    part, with its optimiser's state, from site to site (Poirot et al. 2019); with "splitfed1" each
    site trains a copy of the server's part, with "splitfed2" all train the one, in an order drawn
    each round; both then average the sites' parts (Thapa et al. 2022).
    """

    cut: str = ""
    back: str = ""
    labels: Literal["site", "server"] = "site"
    variant: Literal["sequential", "splitfed1", "splitfed2"] = "sequential"
    seed: int = 0
    server: ServerPart | None = None

    needs = Links.STAR
    model_at_sites = False
    quorum = EVERYONE

    @property
    def _server(self) -> ServerPart:
        assert self.server is not None, "only a topology with its server's part plays rounds"
        return self.server

    def round(self, state: State, sites: Sites, method: Method) -> RoundResult:
        """Let each site train its part in turn, batch by batch, together with the server's."""
        plays = {
            "sequential": self._handed_on,
            "splitfed1": self._on_copies,
            "splitfed2": self._on_one,
        }
        state, replies = plays[self.variant](state, sites, method)
        return RoundResult(state, [replies[name] for name in sites.names])

    def _handed_on(
        self, state: State, sites: Sites, method: Method
    ) -> tuple[State, dict[str, Reply]]:
        plan, moments = replace(method.plan, carries=True), name_starts(OPTIMIZER)
        replies: dict[str, Reply] = {}
        left = state
        for name in sites.names:
            turn = self._turn(name, state, left, plan, sites)
            replies[name], came = turn.reply, turn.reply.weights
            weights = select(came, lambda tensor: not moments(tensor)) | turn.served
            memory = select(came, moments) | with_prefix(SERVER_STATE, turn.moments)
            left = replace(left, weights=weights, memory=memory)
        return replace(left, round=state.round + 1), replies

    def _on_copies(
        self, state: State, sites: Sites, method: Method
    ) -> tuple[State, dict[str, Reply]]:
        turns: dict[str, ServerTurn] = {}
        for name in sites.names:
            memory = with_prefix(
                SERVER_STATE, without_prefix(f"{SERVER_STATE}{name}/", state.memory)
            )
            start = replace(state, memory=memory)
            turns[name] = self._turn(name, state, start, method.plan, sites)
        whole = [replace(t.reply, weights=t.reply.weights | t.served) for t in turns.values()]
        memory = {
            address: tensor
            for name, turn in turns.items()
            for address, tensor in with_prefix(f"{SERVER_STATE}{name}/", turn.moments).items()
        }
        combined = replace(method.combine(state, whole), memory=memory)
        return combined, {name: turn.reply for name, turn in turns.items()}

    def _on_one(self, state: State, sites: Sites, method: Method) -> tuple[State, dict[str, Reply]]:
        draw = Random(seed_for(self.seed, "order", state.round + 1))
        replies: dict[str, Reply] = {}
        served, left = dict[str, ServerTurn](), state
        for name in draw.sample(sites.names, len(sites.names)):
            turn = self._turn(name, state, left, method.plan, sites)
            replies[name], served["last"] = turn.reply, turn
            memory = with_prefix(SERVER_STATE, turn.moments)
            left = replace(left, weights=left.weights | turn.served, memory=memory)
        combined = method.combine(state, [replies[name] for name in sites.names])
        part = select(left.weights, self._server.holds)
        return replace(combined, weights=combined.weights | part, memory=left.memory), replies

    def _turn(
        self, name: str, state: State, start: State, plan: LocalPlan, sites: Sites
    ) -> ServerTurn:
        """Let one site train on all its batches, from where `start` left both parts."""
        number, server = state.round + 1, self._server
        server.load(start.weights, without_prefix(SERVER_STATE, start.memory), number)
        opening = Forward(
            round=number,
            since=state.round,
            keep=state.best_round,
            plan=plan,
            weights=self._at_site(start.weights) | select(start.memory, name_starts(OPTIMIZER)),
        )
        replies: list[Reply] = []
        for step, last, came in _batches(name, opening, sites):
            gradients = self._exchange(name, number, step, came, sites)
            order = Backward(round=number, step=step, last=last, weights=gradients)
            order = replace(order, losses=server.losses()) if last else order
            replies = sites.ask({name: order})
        [reply] = replies
        return ServerTurn(reply, server.weights(), server.moments())

    def _exchange(self, name: str, round: int, step: int, came: Weights, sites: Sites) -> Weights:
        """Train the server's part on one batch, and give the gradients for the site's front."""
        server = self._server
        made = server.forward(came, name, round, step)
        if self.labels == "server":
            return server.learn(came)
        [judged] = sites.ask({name: Tail(round=round, step=step, weights=made)})
        return server.backward(judged.weights)

    def _at_site(self, weights: Weights) -> Weights:
        return select(weights, lambda name: not self._server.holds(name))

    def evaluate(self, sites: Sites, orders: Mapping[str, Evaluate]) -> list[Reply]:
        """Let the sites score their cases, batch by batch, through the server's part."""
        return [
            reply for name, order in orders.items() for reply in self._score(name, order, sites)
        ]

    def _score(self, name: str, order: Evaluate, sites: Sites) -> list[Reply]:
        self._server.load(order.weights, {}, order.round)
        opening = Forward(
            round=order.round,
            since=order.since,
            split=order.split,
            cases=order.cases,
            weights=self._at_site(order.weights),
        )
        for step, _, came in _batches(name, opening, sites):
            made = self._server.predict(came)
            sites.ask({name: Tail(round=order.round, step=step, weights=made)})
        return sites.ask({name: replace(order, weights={})})

    def account(self, load: RoundLoad) -> RoundCost:
        """Count what crosses the cut with every batch, and the site's part as it is handed on."""
        crossing = load.crossing
        assert crossing is not None, "a network that is split has a cut"
        up, down = sum(crossing.up.values()), crossing.down
        case = 2 * up + (crossing.labels if self.labels == "server" else 2 * down)
        handed = crossing.part + (crossing.moments if self.variant == "sequential" else 0)
        cases = crossing.cases or load.sites * crossing.batch_size
        scored = crossing.validated * crossing.scored + load.sites * crossing.part
        total = case * cases + 2 * load.sites * handed + load.validations * scored
        return RoundCost(
            int(total),
            f"the sum of all sites' times, with {2 if self.labels == 'server' else 3} exchanges "
            "for each batch",
            {
                "server": f"{self._crossing(crossing)}; {self._parts}; its own part",
                "sites": "the gradients of what they sent across the cut"
                + (", and the site's part as the one before left it" if self._hands_on else ""),
            },
        )

    @property
    def _hands_on(self) -> bool:
        return self.variant == "sequential"

    @property
    def _parts(self) -> str:
        return "the site's part after each turn" if self._hands_on else "every site's own part"

    def _crossing(self, crossing: CutTraffic) -> str:
        """Say what the server sees of every batch, and what it weighs."""
        tensors = dict(crossing.up)
        if self.labels == "server":
            tensors["labels"] = crossing.labels
        size = crossing.batch_size / KIB
        told = ", ".join(f"{name} {size * n:,.1f} KiB" for name, n in tensors.items())
        output = "" if self.back else "; the network's output"
        known = "" if crossing.cases else "; a round's bytes count one batch a site, files untold"
        return f"every site's activations at the cut (a batch: {told}{known}){output}"


def _batches(name: str, opening: Forward, sites: Sites) -> Iterator[tuple[int, bool, Weights]]:
    """Ask a site for its batches one by one: the step, whether it is the last, what it sent."""
    [reply] = sites.ask({name: opening})
    steps = reply.steps
    for step in range(steps):
        if step:
            [reply] = sites.ask({name: replace(opening, step=step, weights={})})
        yield step, step + 1 == steps, reply.weights
