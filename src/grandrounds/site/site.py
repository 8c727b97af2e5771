"""One hospital: it answers requests with what its data, its model and its disk hold."""

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypeAlias, assert_never

from grandrounds.core.events import SiteReady
from grandrounds.core.failures import unredacted
from grandrounds.core.messages import (
    Adopt,
    Backward,
    Describe,
    Evaluate,
    Finish,
    Forward,
    Merge,
    Reply,
    Request,
    Tail,
    Train,
    Tune,
)
from grandrounds.core.weights import Weights, digest, num_bytes
from grandrounds.site.evaluation import Evaluator
from grandrounds.site.local_round import LocalRound
from grandrounds.site.model_state import SiteModel
from grandrounds.site.peers import Mailbox, PeerExchange
from grandrounds.site.setup import SiteSetup
from grandrounds.site.split import SplitRequest, SplitTurns
from grandrounds.site.training import isolated_rng, train

Promise: TypeAlias = Callable[[], Reply]
SimpleRequest: TypeAlias = Describe | Merge | Adopt | Tune | Evaluate | Finish


@dataclass(frozen=True, kw_only=True)
class Site(SiteSetup):
    """A site that answers requests; its private state stays on its own disk.

    `disk` keeps and fingerprints private state while the site, or another one, computes. `redact`
    takes out of a failure what only the site may know.
    """

    ready: SiteReady
    disk: Executor
    redact: Callable[[str], str] = unredacted
    mailbox: Mailbox = field(default_factory=Mailbox)

    def answer(self, request: Request) -> Reply:
        """Do what is asked; when the reply is released, what must survive is on this site's disk.

        Randomness depends on (study seed, site, round) alone, and leaves no trace.
        """
        return self.begin(request)()

    def begin(self, request: Request) -> Promise:
        """Do what is asked, and promise the reply for when the disk has taken what must survive.

        An engine may let another site compute meanwhile; it releases no reply before it has kept
        its promise.
        """
        started = time.perf_counter()
        with isolated_rng(self.answer_seed(request)):
            promise = self._begin(request)
        seconds = time.perf_counter() - started
        return lambda: self._signed(promise(), seconds)

    def _signed(self, reply: Reply, seconds: float) -> Reply:
        sent = reply.sent or num_bytes(reply.weights)
        seconds = reply.seconds or seconds
        return replace(reply, examples=len(self.training_examples), seconds=seconds, sent=sent)

    def receive(self, update: Reply) -> None:
        """Take a peer's update, or a leader's merged model; only `Merge` and `Adopt` use it up."""
        self.mailbox.put(update)

    def _begin(self, request: Request) -> Promise:
        if isinstance(request, Train):
            return self._train_round(request)
        if isinstance(request, Forward | Tail | Backward):
            return self._take_turn(request)
        return partial(_same, self._answer(request))

    def _answer(self, request: SimpleRequest) -> Reply:
        match request:
            case Describe():
                return self._describe()
            case Merge():
                return PeerExchange(self._desk, self.mailbox).merge(request)
            case Adopt():
                return PeerExchange(self._desk, self.mailbox).adopt(request)
            case Tune():
                return self._tune(request)
            case Evaluate():
                return self._evaluate(request)
            case Finish():
                return self._finish(request)
            case _:
                assert_never(request)

    def _describe(self) -> Reply:
        return Reply(site=self.name, round=0, rounds=self._desk.kept.rounds(), ready=self.ready)

    @cached_property
    def _desk(self) -> SiteModel:
        return SiteModel(self)

    @cached_property
    def _turns(self) -> SplitTurns:
        assert self.cut is not None, "only a study that cuts the network asks for this"
        return SplitTurns(self._desk, self.cut)

    def _evaluate(self, request: Evaluate) -> Reply:
        """Score the model that a request is about, or end the turn in which it was scored."""
        exam = Evaluator(self._desk)
        if not self.cut:
            return exam.take(request)
        turn = self._turns.scored()
        picture = turn.pictures.__getitem__
        return turn.tally.signed(exam.report(request, turn.examples, turn.scores, picture))

    def _train_round(self, request: Train) -> Promise:
        self.bench.set_rate(self.learning_rate(request.round))
        trained, shared, stays = LocalRound(self._desk, request).train()
        reply = Reply(
            site=self.name,
            round=request.round,
            steps=trained.steps,
            score=Evaluator(self._desk).trained() if request.plan.validates else None,
            metrics=trained.losses,
            weights=shared,
        )
        return self._kept_privately(reply, stays, {request.keep, request.since})

    def _kept_privately(self, reply: Reply, mine: Weights, keep: set[int]) -> Promise:
        """Promise a round's reply for when the disk has its private state."""
        kept = self.disk.submit(self._desk.kept.private.save, reply.round, mine, {}, keep)
        fingerprint = self.disk.submit(digest, mine)

        def promise() -> Reply:
            kept.result()
            return replace(reply, digest=fingerprint.result())

        return promise

    def _tune(self, request: Tune) -> Reply:
        """Fine-tune the whole model, all of it private from here on."""
        self._desk.load_for_training(self._desk.local_model(request))
        self.bench.set_rate(self.training.learning_rate)
        lesson = self.lesson(request.round)
        trained = train(self.bench, lesson, lesson.batches(epochs=request.epochs))
        tuned = self._desk.all_weights()
        self._desk.kept.save_tuned(tuned)
        metrics, steps = trained.losses, trained.steps
        return Reply(
            site=self.name, round=request.round, steps=steps, metrics=metrics, digest=digest(tuned)
        )

    def _take_turn(self, request: SplitRequest) -> Promise:
        reply, kept = self._turns.take(request)
        if kept is None:
            return partial(_same, reply)
        return self._kept_privately(reply, kept.private, kept.rounds)

    def _finish(self, request: Finish) -> Reply:
        self._desk.write_models({"": request.best, "-last": request.round})
        return Reply(site=self.name, round=request.round)


def _same(reply: Reply) -> Reply:
    return reply
