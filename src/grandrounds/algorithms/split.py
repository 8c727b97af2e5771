"""In split learning a site runs a network's first stages, perhaps its last; a server the rest."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, Protocol

from grandrounds.algorithms.method import Method, Need, merge_updates
from grandrounds.algorithms.topology import (
    EVERYONE,
    CutTraffic,
    Groups,
    Links,
    RoundCost,
    RoundLoad,
    RoundResult,
    Sites,
    unasked,
    undeliverable,
)
from grandrounds.core.messages import Backward, Evaluate, Forward, Reply, Request, Tail
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
    """The server's stages; tensors that cross the cut are named as in messages."""

    def holds(self, name: str) -> bool:
        """Tell whether a tensor belongs to the server's part."""
        ...

    def load(self, weights: Weights, moments: Weights, round: int) -> None:
        """Begin a turn from these weights and this optimiser state."""
        ...

    def weights(self) -> Weights:
        """Return the weights of the server's part."""
        ...

    def moments(self) -> Weights:
        """Return the state of its optimiser."""
        ...

    def forward(self, received: Weights, site: str, round: int, batch: int) -> Weights:
        """Run the server's stages on a site's activations; return those for the site's tail."""
        ...

    def backward(self, received: Weights) -> Weights:
        """Backpropagate the gradients of a site's tail, and step; return those for its head."""
        ...

    def learn(self, received: Weights) -> Weights:
        """Compute the loss with the labels received, and step; return gradients for the head."""
        ...

    def losses(self) -> Mapping[str, float]:
        """Return the turn's mean losses, where the server has the labels. Raises `RunFailed`."""
        ...

    def predict(self, received: Weights) -> Weights:
        """Run the server's stages in evaluation mode."""
        ...


@dataclass(frozen=True)
class ServerTurn:
    """The result of a site's turn: its reply, the server's part and that part's optimiser."""

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

    averages = False
    needs = Links.STAR
    model_at_sites = False
    quorum = EVERYONE

    @property
    def lacks(self) -> frozenset[Need]:
        return frozenset({"whole network"})

    @property
    def moments_travel(self) -> bool:
        return self.variant == "sequential"

    @property
    def _server(self) -> ServerPart:
        assert self.server is not None, "only a topology with its server's part plays rounds"
        return self.server

    def in_a_row(self, sites: int) -> int:
        return 1 if self.variant == "splitfed1" else sites

    def refuses(
        self, request: Request, deliver_to: tuple[str, ...], roster: tuple[str, ...]
    ) -> str:
        return unasked(request, (Forward, Tail, Backward), "split") or undeliverable(deliver_to)

    def round(self, state: State, sites: Sites, method: Method) -> RoundResult:
        """Let each site train its part in turn, batch by batch, together with the server's."""
        variants = {
            "sequential": self._sequential,
            "splitfed1": self._splitfed1,
            "splitfed2": self._splitfed2,
        }
        state, replies = variants[self.variant](state, sites, method)
        ordered = [replies[name] for name in sites.names]
        return RoundResult(state, ordered, groups=self._groups(tuple(replies)))

    def _groups(self, turns: tuple[str, ...]) -> Groups:
        """Return the sites whose steps follow one another in some part of the network.

        With "splitfed2" that is the server's part, which takes the sites' steps in turn.
        """
        return (turns,) if self.variant == "splitfed1" else tuple((name,) for name in turns)

    def _sequential(
        self, state: State, sites: Sites, method: Method
    ) -> tuple[State, dict[str, Reply]]:
        moments = name_starts(OPTIMIZER)
        replies: dict[str, Reply] = {}
        latest = state
        for name in sites.names:
            turn = self._turn(name, state, latest, sites)
            replies[name], received = turn.reply, turn.reply.weights
            weights = select(received, lambda tensor: not moments(tensor)) | turn.served
            memory = select(received, moments) | with_prefix(SERVER_STATE, turn.moments)
            latest = replace(latest, weights=weights, memory=memory)
        return replace(latest, round=state.round + 1), replies

    def _splitfed1(
        self, state: State, sites: Sites, method: Method
    ) -> tuple[State, dict[str, Reply]]:
        turns: dict[str, ServerTurn] = {}
        for name in sites.names:
            memory = with_prefix(
                SERVER_STATE, without_prefix(f"{SERVER_STATE}{name}/", state.memory)
            )
            start = replace(state, memory=memory)
            turns[name] = self._turn(name, state, start, sites)
        complete = [replace(t.reply, weights=t.reply.weights | t.served) for t in turns.values()]
        memory = {
            address: tensor
            for name, turn in turns.items()
            for address, tensor in with_prefix(f"{SERVER_STATE}{name}/", turn.moments).items()
        }
        combined = replace(merge_updates(method, state, complete), memory=memory)
        return combined, {name: turn.reply for name, turn in turns.items()}

    def _splitfed2(
        self, state: State, sites: Sites, method: Method
    ) -> tuple[State, dict[str, Reply]]:
        rng = Random(seed_for(self.seed, "order", state.round + 1))
        replies: dict[str, Reply] = {}
        served, latest = dict[str, ServerTurn](), state
        for name in rng.sample(sites.names, len(sites.names)):
            turn = self._turn(name, state, latest, sites)
            replies[name], served["last"] = turn.reply, turn
            memory = with_prefix(SERVER_STATE, turn.moments)
            latest = replace(latest, weights=latest.weights | turn.served, memory=memory)
        combined = merge_updates(method, state, [replies[name] for name in sites.names])
        part = select(latest.weights, self._server.holds)
        return replace(combined, weights=combined.weights | part, memory=latest.memory), replies

    def _turn(self, name: str, state: State, start: State, sites: Sites) -> ServerTurn:
        """Let one site train on all its batches, from both parts' weights in `start`."""
        number, server = state.round + 1, self._server
        server.load(start.weights, without_prefix(SERVER_STATE, start.memory), number)
        opening = Forward(
            round=number,
            since=state.round,
            keep=state.best_round,
            weights=self._at_site(start.weights) | select(start.memory, name_starts(OPTIMIZER)),
        )
        replies: list[Reply] = []
        for step, last, received in _batches(name, opening, sites):
            gradients = self._exchange(name, number, step, received, sites)
            request = Backward(round=number, step=step, last=last, weights=gradients)
            request = replace(request, losses=server.losses()) if last else request
            replies = sites.ask({name: request})
        [reply] = replies
        return ServerTurn(reply, server.weights(), server.moments())

    def _exchange(
        self, name: str, round: int, step: int, received: Weights, sites: Sites
    ) -> Weights:
        """Train the server's part on one batch, and return the gradients for the site's head."""
        server = self._server
        output = server.forward(received, name, round, step)
        if self.labels == "server":
            return server.learn(received)
        [reply] = sites.ask({name: Tail(round=round, step=step, weights=output)})
        return server.backward(reply.weights)

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
        for step, _, received in _batches(name, opening, sites):
            output = self._server.predict(received)
            sites.ask({name: Tail(round=order.round, step=step, weights=output)})
        return sites.ask({name: replace(order, weights={})})

    def account(self, load: RoundLoad) -> RoundCost:
        """Return the cost of what crosses the cut with every batch, and of the site's part."""
        crossing = load.crossing
        assert crossing is not None, "a network that is split has a cut"
        up, down = sum(crossing.up.values()), crossing.down
        case = 2 * up + (crossing.labels if self.labels == "server" else 2 * down)
        handed = crossing.part + (crossing.moments if self.moments_travel else 0)
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
                + (
                    ", and the site's part as the one before left it" if self.moments_travel else ""
                ),
            },
            groups=self.in_a_row(load.sites),
        )

    @property
    def _parts(self) -> str:
        return "the site's part after each turn" if self.moments_travel else "every site's own part"

    def _crossing(self, crossing: CutTraffic) -> str:
        """Say what the server sees of every batch, and how large it is."""
        tensors = dict(crossing.up)
        if self.labels == "server":
            tensors["labels"] = crossing.labels
        size = crossing.batch_size / KIB
        sizes = ", ".join(f"{name} {size * n:,.1f} KiB" for name, n in tensors.items())
        output = "" if self.back else "; the network's output"
        known = "" if crossing.cases else "; a round's bytes count one batch a site, files untold"
        return f"every site's activations at the cut (a batch: {sizes}{known}){output}"


def _batches(name: str, opening: Forward, sites: Sites) -> Iterator[tuple[int, bool, Weights]]:
    """Ask a site for its batches; yield the step, whether it is the last, and what was sent."""
    [reply] = sites.ask({name: opening})
    steps = reply.steps
    for step in range(steps):
        if step:
            [reply] = sites.ask({name: replace(opening, step=step, weights={})})
        yield step, step + 1 == steps, reply.weights
