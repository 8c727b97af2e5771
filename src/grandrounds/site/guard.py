"""A site holds every request against the study that it accepted, before it reads or writes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from grandrounds.algorithms.policy import CUT, TensorPolicy, problem_crossing
from grandrounds.algorithms.topology import Topology
from grandrounds.core.errors import RunFailed
from grandrounds.core.messages import (
    Adopt,
    AdvertiseKeys,
    Backward,
    Describe,
    Evaluate,
    Finish,
    Forward,
    KeyRequest,
    Merge,
    Reply,
    Request,
    ShareKeys,
    Survey,
    Tail,
    Train,
    Tune,
    Unmask,
)
from grandrounds.core.site_statistics import SiteStatistics
from grandrounds.core.weights import Weights
from grandrounds.site.peers import reveals

SCORED = ("validation", "test")


class Refused(RunFailed):
    """A request or an update is not what the accepted study says."""


class RequestGuard(Protocol):
    """Holds what a site is asked, what it answers, and what peers deliver; raises `Refused`."""

    def check(self, request: Request, deliver_to: Sequence[str] = ()) -> None:
        """Refuse a request."""
        ...

    def check_reply(self, request: Request, reply: Reply) -> None:
        """Refuse to send a reply."""
        ...

    def check_peer(self, sender: str, update: Reply) -> None:
        """Refuse an update of a peer."""
        ...


@dataclass(frozen=True)
class SurveyGuard:
    """Lets a site answer for its statistics, once in a job, and for nothing else.

    `problem` returns what in an answer is not what the accepted study asks for.
    """

    problem: Callable[[SiteStatistics], str]

    def check(self, request: Request, deliver_to: Sequence[str] = ()) -> None:
        """Refuse any other request, and to send the answer to anyone but the coordinator."""
        if not isinstance(request, Survey) or deliver_to or request.round:
            raise Refused("this job asks for a site's statistics, and for nothing else")

    def check_reply(self, request: Request, reply: Reply) -> None:  # noqa: ARG002
        """Refuse to send anything but statistics as the study asks for them."""
        if reply.weights or reply.scores or reply.ready or reply.statistics is None:
            raise Refused("an answer with statistics has nothing else in it")
        _refuse(self.problem(reply.statistics))

    def check_peer(self, sender: str, update: Reply) -> None:  # noqa: ARG002
        """Refuse every update."""
        raise Refused("sites send each other nothing in a job for statistics")


@dataclass
class StudyGuard:
    """Holds requests, updates of peers and replies against a study.

    `policy` is the site's own; `peers` has that of each site of the roster, and by "" that of all
    together, of which a leader merges. `held` returns the rounds whose private state is saved.
    `broadcasts` tells whether all sites start from one model; the site takes part from round
    `joins` on. Everything here raises `Refused`.
    """

    rounds: int
    fine_tune: int
    broadcasts: bool
    roster: tuple[str, ...]
    topology: Topology
    policy: TensorPolicy
    peers: Mapping[str, TensorPolicy]
    held: Callable[[], tuple[int, ...]]
    joins: int = 1
    _tested: bool = field(default=False, init=False)
    _turn: Forward | None = field(default=None, init=False)
    _step: int = field(default=0, init=False)
    _tail: bool = field(default=False, init=False)

    @property
    def last(self) -> int:
        """Return the newest round that the site has trained; 0 before the first."""
        return max(self.held(), default=0)

    def check(self, request: Request, deliver_to: Sequence[str] = ()) -> None:
        """Refuse a request that the study, at this point of the run, does not make.

        One that is refused changes nothing of what may be asked next.
        """
        before = (self._tested, self._turn, self._step, self._tail)
        try:
            self._check(request, deliver_to)
        except Refused:
            self._tested, self._turn, self._step, self._tail = before
            raise

    def _check(self, request: Request, deliver_to: Sequence[str]) -> None:
        if isinstance(request, Survey):
            raise Refused("statistics are asked for in a job of their own, not in a training")
        _refuse(self.topology.refuses(request, tuple(deliver_to), self.roster))
        if not 0 <= request.round <= self.rounds:
            raise Refused(f"round {request.round} is not one of the study's {self.rounds}")
        if isinstance(request, Forward | Tail | Backward):
            self._check_turn(request)
        elif isinstance(request, Evaluate):
            self._check_evaluation(request)
        elif isinstance(request, AdvertiseKeys | ShareKeys | Unmask):
            self._check_keys(request)
        elif not isinstance(request, Describe):
            self._check_round(request)

    def _check_round(self, request: Train | Merge | Adopt | Tune | Finish) -> None:
        match request:
            case Train():
                self._check_next(request.round, request.since, request.keep)
                self._check_model(request.round, request.weights)
                _refuse(self.policy.problem_down(request.weights))
            case Merge() | Adopt():
                self._check_merging(request)
            case Tune():
                self._check_tuning(request)
            case Finish():
                self._check_held(request.round)
                self._check_held(request.best)

    def _check_keys(self, request: KeyRequest) -> None:
        """Refuse keys for a round that cannot be trained, and to unmask any but the last one.

        What the keys themselves allow, the session of the round holds against the protocol.
        """
        _refuse(self.policy.problem_of_key_request(request))
        if isinstance(request, Unmask):
            if request.round < 1 or request.round != self.last:
                raise Refused(
                    f"round {request.round} cannot be unmasked here; the last is {self.last}"
                )
            if not set(request.survivors) <= set(self.roster):
                raise Refused("a survivor was named who is not in this study")
        else:
            self._check_trainable(request.round)

    def _check_next(self, round: int, since: int, keep: int) -> None:
        """Refuse a round that is neither the next nor one of the last two, or after the test.

        The coordinator may have lost the newest round that it saved, while this site trained one
        more: a resumed run then repeats both.
        """
        self._check_trainable(round)
        misses = self.topology.quorum.least is not None
        before = since < round if misses else since == (0 if round == self.joins else round - 1)
        if since < 0 or not before:
            raise Refused(f"round {round} cannot follow round {since} in this study")
        self._check_held(since)
        if not 0 <= keep < round:
            raise Refused(f"round {keep} cannot be the best before round {round}")

    def _check_trainable(self, round: int) -> None:
        if self._tested:
            raise Refused("test cases were scored, which ends the training of a run")
        last, misses = self.last, self.topology.quorum.least is not None
        next = max(last + 1, self.joins)
        following = round >= next if misses else round == next
        if round < self.joins or not (following or round in (last - 1, last)):
            raise Refused(f"round {round} was asked for; this site's next is {next}")

    def _check_held(self, round: int) -> None:
        if round and round not in self.held():
            raise Refused(f"this site holds no private state of round {round}")

    def _check_model(self, round: int, weights: Weights) -> None:
        """Refuse a request that lacks the model, or brings one where the site holds it."""
        if self.topology.model_at_sites and weights:
            raise Refused("the sites hold the model in this study; none may be sent")
        starts_apart = round == 1 and not self.broadcasts
        expected = self.policy.model and not self.topology.model_at_sites and not starts_apart
        if expected and not weights:
            raise Refused("no model came with the request")
        if starts_apart and any("/" not in name for name in weights):
            raise Refused("every site starts from first weights of its own in this study")

    def _check_opening(self, request: Forward) -> None:
        """Check the beginning of a turn at a network that is cut."""
        if request.split == "train":
            self._check_next(request.round, request.since, request.keep)
        else:
            self._check_split(request.split, cases=request.cases)
            self._check_held(request.since)
        _refuse(self.policy.problem_down(request.weights))
        self._turn, self._step, self._tail = request, 0, False

    def _check_turn(self, request: Forward | Tail | Backward) -> None:
        """Check a step of a turn at a network that is cut, which follows the one before."""
        if isinstance(request, Forward) and request.step == 0:
            self._check_opening(request)
            return
        turn = self._turn
        if turn is None or turn.round != request.round:
            raise Refused("no turn of this round was opened")
        step = self._step + isinstance(request, Forward)
        if request.step != step:
            raise Refused(f"step {request.step} was asked for; this turn is at {self._step}")
        if isinstance(request, Forward):
            self._check_further(request, turn)
        else:
            self._check_return(request, turn)

    def _check_further(self, request: Forward, turn: Forward) -> None:
        if request.weights or request.split != turn.split:
            raise Refused("a turn that was opened is asked for another one's batches")
        self._step, self._tail = request.step, False

    def _check_return(self, request: Tail | Backward, turn: Forward) -> None:
        if isinstance(request, Tail):
            if self._tail:
                raise Refused(f"the tail of step {request.step} was asked for twice")
            self._tail = True
        elif turn.split != "train":
            raise Refused("nothing is trained in a turn that scores")
        _refuse(problem_crossing(request.weights, (CUT,)))
        if isinstance(request, Backward) and request.last:
            self._turn = None

    def _check_merging(self, request: Merge | Adopt) -> None:
        if request.round < 1 or request.round != self.last:
            raise Refused(f"round {request.round} cannot be merged here; the last is {self.last}")
        if isinstance(request, Merge) and request.since != request.round - 1:
            raise Refused(f"round {request.round} cannot follow round {request.since}")
        if isinstance(request, Adopt) and not 0 <= request.keep < request.round:
            raise Refused(f"round {request.keep} cannot be the best before round {request.round}")

    def _check_evaluation(self, request: Evaluate) -> None:
        self._check_split(request.split, cases=request.cases)
        self._check_held(request.since)
        if request.since > request.round:
            raise Refused(f"round {request.since} is later than round {request.round}")
        if request.tuned and not self.fine_tune:
            raise Refused("this study fine-tunes no model")
        if request.after and request.after not in self.roster:
            raise Refused("the turn of a site that is not in this study was named")
        _refuse(self.policy.problem_scored(request.weights))

    def _check_split(self, split: str, *, cases: bool) -> None:
        if split not in SCORED:
            raise Refused("only validation and test cases are scored, never those of training")
        if cases and split != "test":
            raise Refused("only test cases are scored one by one")
        self._tested = self._tested or split == "test"

    def _check_tuning(self, request: Tune) -> None:
        if not self.fine_tune or request.epochs != self.fine_tune:
            raise Refused(
                f"{request.epochs} epochs of fine-tuning; the study says {self.fine_tune}"
            )
        self._check_held(request.since)
        _refuse(self.policy.problem_scored(request.weights))

    def check_reply(self, request: Request, reply: Reply) -> None:
        """Refuse to send what the study does not send."""
        policy = self.peers[""] if isinstance(request, Merge) else self.policy
        _refuse(policy.problem_in_reply(request, reply.weights))

    def check_peer(self, sender: str, update: Reply) -> None:
        """Refuse an update that this peer may not deliver here, or that is not of the study."""
        if not self.topology.model_at_sites:
            raise Refused("sites send each other nothing in this study")
        if sender not in self.roster or update.site != sender:
            raise Refused("an update bears another name than its sender's")
        if not max(1, self.last - 1) <= update.round <= self.last + 1:
            raise Refused(f"an update of round {update.round}; this site is at round {self.last}")
        if reveals(update):
            _refuse(self.policy.problem_revealed(update.weights))
        elif update.merged:
            _refuse(self.peers[""].problem_merged(update.weights))
        else:
            _refuse(self.peers[sender].problem_in_update(update.weights))


def _refuse(problem: str) -> None:
    if problem:
        raise Refused(problem)
