"""A coordinator believes no reply: each is held against the study before it counts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from grandrounds.algorithms.policy import TensorPolicy
from grandrounds.core.ledger import TURN_STEPS
from grandrounds.core.messages import CaseScore, Reply, Request, Train, message_digest
from grandrounds.core.weights import digest

_MOST = 10**9  # of anything that a site counts
_DIGEST, _SIGNATURE = re.compile("[0-9a-f]{64}"), re.compile("[A-Za-z0-9+/=]{0,1400}")
_BYTES = ("sent", "received", "full")
_LONGEST = 200  # characters of a word of a site's: a task, a pseudonym, a metric


@dataclass
class ReplyGuard:
    """Holds sites' replies against the study; `policies` says what tensors each one may send.

    How many training examples a site has it says in its first reply; another number later is
    refused, since it weighs the site's update. Where the site's ledger stands must come along with
    every reply, `signed` in a federation, name this very message, and go on from where it stood.
    """

    rounds: int
    policies: Mapping[str, TensorPolicy]
    signed: bool = False
    _examples: dict[str, int] = field(default_factory=dict[str, int], init=False)
    _stood: dict[str, int] = field(default_factory=dict[str, int], init=False)

    def __call__(self, request: Request, reply: Reply, delivered: bool) -> str:
        """Return what is wrong with a reply; empty if nothing."""
        return (
            self._wrong_count(request, reply)
            or _wrong_number(reply)
            or _wrong_name(reply)
            or self._wrong_round(reply)
            or self.policies[reply.site].problem_in_reply(
                request, reply.weights, delivered=delivered
            )
            or self._wrong_head(request, reply)
        )

    def _wrong_head(self, request: Request, reply: Reply) -> str:
        """Return what is wrong with where a site says that its ledger stands."""
        head, stood = reply.ledger, self._stood.get(reply.site, 0)
        if head is None:
            return "it does not say where its ledger stands" if self.signed else ""
        if not (_DIGEST.fullmatch(head.sum) and _SIGNATURE.fullmatch(head.signature)):
            return "what it says of its ledger is no digest and signature"
        if self.signed and not head.signature and type(request).__name__.lower() not in TURN_STEPS:
            return "the line of its ledger is not signed"
        if not stood < head.number <= _MOST:
            return f"its ledger stood at line {stood}, and now at line {head.number}"
        if head.message != message_digest(reply, digest(reply.weights) if reply.weights else ""):
            return "its ledger tells of another message than it sent"
        self._stood[reply.site] = head.number
        return ""

    def _wrong_count(self, request: Request, reply: Reply) -> str:
        known = self._examples.setdefault(reply.site, reply.examples)
        if reply.examples != known:
            return f"it has {known} training examples, and now says {reply.examples}"
        if isinstance(request, Train) and reply.examples < 1:
            return "it trained, and says that it has no training examples"
        return ""

    def _wrong_round(self, reply: Reply) -> str:
        odd = next((round for round in reply.rounds if not 0 <= round <= self.rounds), None)
        return "" if odd is None else f"it holds a round {odd}, which the study has not"


def _wrong_number(reply: Reply) -> str:
    counts = {
        name: getattr(reply, name) for name in ("examples", "cases", "steps", "merged", *_BYTES)
    }
    for name, count in counts.items():
        if not 0 <= count <= _MOST * (1000 if name in _BYTES else 1):
            return f"its {name} is {count}"
    if reply.epsilon is not None and not (isfinite(reply.epsilon) and reply.epsilon >= 0):
        return f"its epsilon is {reply.epsilon}"
    if not (isfinite(reply.seconds) and reply.seconds >= 0):
        return f"its time is {reply.seconds} s"
    if reply.score is not None and not isfinite(reply.score):
        return "its validation score is no number"
    return ""


def _wrong_name(reply: Reply) -> str:
    """Return what is wrong with the names in a reply, which stand in tables and folders."""
    if reply.ready and reply.ready.site != reply.site:
        return "it describes another site"
    if any(score.site != reply.site for score in reply.scores):
        return "it scores cases of another site"
    words = [*reply.metrics, *(word for score in reply.scores for word in _words(score))]
    odd = next((word for word in words if len(word) > _LONGEST or not word.isprintable()), None)
    return "" if odd is None else "a name in it is too long, or cannot be printed"


def _words(score: CaseScore) -> tuple[str, ...]:
    return (score.patient, score.case, score.task, *score.values)
