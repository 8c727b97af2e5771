"""A site answers requests from its data, its model and its disk."""

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypeAlias, assert_never

from grandrounds.core.events import SiteReady
from grandrounds.core.failures import Disclosure
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
from grandrounds.core.weights import Weights, digest, num_bytes, unaliased, with_prefix
from grandrounds.data.profile import has_images, make_profile
from grandrounds.privacy.guard import GUARD, Departure
from grandrounds.site.evaluation import Evaluator
from grandrounds.site.local_round import SiteRound
from grandrounds.site.masking import SiteMasking
from grandrounds.site.model_state import SiteModel
from grandrounds.site.peers import Mailbox, PeerExchange
from grandrounds.site.setup import SiteSetup
from grandrounds.site.split import SplitRequest, SplitTurns
from grandrounds.site.training import TrainingLoop, isolated_rng

Promise: TypeAlias = Callable[[], Reply]
SimpleRequest: TypeAlias = Describe | Merge | Adopt | Tune | Evaluate | Finish


@dataclass(frozen=True, kw_only=True)
class Site(SiteSetup):
    """A site that answers requests; its private state stays on its own disk.

    `disk` saves private state and computes its digest while the site, or another one, computes.
    `disclosure` says what others are told of a failure. `masking` is there where the study masks
    updates.
    """

    ready: SiteReady
    disk: Executor
    disclosure: Disclosure
    mailbox: Mailbox = field(default_factory=Mailbox)
    masking: SiteMasking | None = None

    @property
    def tells_all(self) -> bool:
        """Tell whether its failures may be told as they are where its run is recorded."""
        return self.ready.simulated or self.disclosure.reveals

    def answer(self, request: Request) -> Reply:
        """Answer a request, and return the reply once all that must last is on this site's disk.

        Random numbers depend on the study's seed, site, round and request alone; the global state
        of the generators is restored.
        """
        return self.begin(request)()

    def expect(self, request: Request) -> None:
        """Begin to read from the disk what the answer to this request will need."""
        if not isinstance(request, Train | Evaluate) or not request.since:
            return
        if isinstance(request, Train) or not (request.tuned or self.cut):
            model = self._site_model
            model.ahead.begin(model.store.private, request.since, self.disk)

    def begin(self, request: Request) -> Promise:
        """Answer a request; the promise waits for the disk, then returns the reply.

        An engine may let another site compute meanwhile; it passes a reply on only once its promise
        has returned.
        """
        started = time.perf_counter()
        with isolated_rng(self.answer_seed(request)):
            promise = self._begin(request)
        seconds = time.perf_counter() - started
        return lambda: self._with_totals(promise(), seconds)

    def _with_totals(self, reply: Reply, seconds: float) -> Reply:
        sent = reply.sent or num_bytes(reply.weights)
        seconds = reply.seconds or seconds
        return replace(reply, examples=len(self.training_examples), seconds=seconds, sent=sent)

    def receive(self, update: Reply) -> None:
        """Store a peer's update, or a leader's merged model, until `Merge` or `Adopt` uses it."""
        self.mailbox.put(update)

    def _begin(self, request: Request) -> Promise:
        if isinstance(request, Train):
            return self._train_round(request)
        if isinstance(request, Forward | Tail | Backward):
            return self._take_turn(request)
        if isinstance(request, AdvertiseKeys | ShareKeys | Unmask):
            return partial(_return, self._answer_about_keys(request))
        assert not isinstance(request, Survey), "a site that trains is never asked for statistics"
        return partial(_return, self._answer(request))

    def _answer(self, request: SimpleRequest) -> Reply:
        match request:
            case Describe():
                return self._describe(request)
            case Merge():
                return self._peers.merge(request)
            case Adopt():
                return self._peers.adopt(request)
            case Tune():
                return self._tune(request)
            case Evaluate():
                return self._evaluate(request)
            case Finish():
                return self._finish(request)
            case _:
                assert_never(request)

    def _describe(self, request: Describe) -> Reply:
        """Return the site's counts; before the first round, what it saved is read and checked."""
        store = self._site_model.store
        rounds = store.rounds() if request.round else store.intact_rounds()
        before = store.data_of(rounds[-1]) if rounds and not request.round else ""
        changed = bool(before) and before != self.data_digest
        return Reply(
            site=self.name,
            round=request.round,
            rounds=rounds,
            ready=self.ready,
            changed=changed,
        )

    @cached_property
    def _site_model(self) -> SiteModel:
        return SiteModel(self)

    @property
    def _peers(self) -> PeerExchange:
        return PeerExchange(self._site_model, self.mailbox, self.masking)

    @cached_property
    def _turns(self) -> SplitTurns:
        assert self.cut is not None, "only a study that cuts the network asks for this"
        return SplitTurns(self._site_model, self.cut)

    def _evaluate(self, request: Evaluate) -> Reply:
        """Score the model that a request names, or end the turn in which it was scored."""
        evaluator = Evaluator(self._site_model)
        if not self.cut:
            return evaluator.evaluate(request)
        turn = self._turns.end_evaluation()
        picture = turn.pictures.__getitem__
        return turn.traffic.complete(evaluator.report(request, turn.examples, turn.scores, picture))

    def _answer_about_keys(self, request: KeyRequest) -> Reply:
        assert self.masking is not None, "only a study that masks updates asks for this"
        uniform = self.method.averaging.aggregation.shares == "uniform"
        weights = self.masking.answer(request, 1 if uniform else len(self.training_examples))
        received = 0 if isinstance(request, AdvertiseKeys) else num_bytes(request.weights)
        return Reply(site=self.name, round=request.round, received=received, weights=weights)

    def _train_round(self, request: Train) -> Promise:
        received = 0
        if request.after:
            request = self._peers.handed_on(request)
            received = num_bytes(request.weights)
        self.trainer.set_rate(self.learning_rate(request.round))
        local_round = SiteRound(self._site_model, request)
        update = self.method.train(local_round)
        leaves = self._departing(local_round.departure(update))
        guarded = self.method.guards.protect(leaves)
        reply = Reply(
            site=self.name,
            round=request.round,
            steps=update.steps,
            received=received,
            score=update.score,
            metrics=update.losses,
            epsilon=local_round.epsilon,
            exhausted=local_round.exhausted,
            full=num_bytes(leaves.update) if self.method.guards else 0,
            weights=unaliased(guarded.update),
        )
        stays = local_round.staying(update) | with_prefix(GUARD, guarded.kept)
        return self._save_private(reply, unaliased(stays), {request.keep, request.since})

    def _departing(self, departure: Departure) -> Departure:
        """Return a departure with what the site alone adds to it."""
        masking = self.masking.session_of(departure.round) if self.masking else None
        return replace(departure, simulated=self.ready.simulated, masking=masking)

    def _save_private(self, reply: Reply, private: Weights, keep: set[int]) -> Promise:
        """Promise a round's reply for when its private state is on the disk."""
        saved = self.disk.submit(self._save_digested, reply.round, private, keep)
        return lambda: replace(reply, digest=saved.result())

    def _save_digested(self, round: int, private: Weights, keep: set[int]) -> str:
        fingerprint = digest(private)
        data = self.data_digest
        self._site_model.store.save_private(round, private, fingerprint, keep, data=data)
        return fingerprint

    def _tune(self, request: Tune) -> Reply:
        """Fine-tune the whole model; the result is private."""
        self._site_model.load_for_training(self._site_model.local_model(request))
        self.trainer.set_rate(self.training.learning_rate)
        loop = TrainingLoop(self.trainer, self.batch_source(request.round))
        result = loop.train(epochs=request.epochs)
        tuned = self._site_model.all_weights()
        self._site_model.store.save_tuned(tuned)
        metrics, steps = result.losses, result.steps
        return Reply(
            site=self.name, round=request.round, steps=steps, metrics=metrics, digest=digest(tuned)
        )

    def _take_turn(self, request: SplitRequest) -> Promise:
        reply, state = self._turns.answer(request)
        if state is None:
            return partial(_return, reply)
        return self._save_private(reply, state.private, state.rounds)

    def _finish(self, request: Finish) -> Reply:
        self._site_model.write_models({"": request.best, "-last": request.round})
        if has_images(self.cohorts):
            self._site_model.store.save_profile(make_profile(self.cohorts, self.pixel))
        return Reply(site=self.name, round=request.round)


def _return(reply: Reply) -> Reply:
    return reply
