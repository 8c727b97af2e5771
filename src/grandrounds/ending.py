"""The end of a run: the tested model is written, fine-tuned where that is asked for, and scored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from grandrounds.build import Federation
from grandrounds.checkpoints import State, load_state
from grandrounds.data.case import Split
from grandrounds.messages import CaseScore, Evaluate, Finish, Reply, Tune
from grandrounds.study import Study
from grandrounds.study_file import fingerprint
from grandrounds.topologies.topology import Sites
from grandrounds.weights import Weights, read, write


def evaluated(
    federation: Federation[Sites],
    state: State,
    split: Split,
    sites: Sequence[str],
    *,
    cases: bool = False,
    tuned: bool = False,
) -> list[Reply]:
    """Let sites score a state's model."""
    order = Evaluate(round=state.round, since=0, split=split, cases=cases, tuned=tuned)
    own = federation.method.combine.of_site
    orders = {
        name: replace(order, since=state.last_of(name), weights=own(state.weights, name))
        for name in sites
    }
    return federation.topology.evaluate(federation.sites, orders)


@dataclass(frozen=True)
class Ending:
    """What happens after the last round; `tested` is the state whose model is tested."""

    study: Study
    folder: Path
    federation: Federation[Sites]
    last: State

    @property
    def tested(self) -> State:
        """Load the best round, or the last one if the study tests that."""
        best = self.study.stop.test == "best"
        return load_state(self.folder, self.last.best_round if best else self.last.round)

    def scores(self) -> tuple[State, list[CaseScore]]:
        """Write the models, and score every test case; give the tested state, too."""
        tested = self.tested
        self._write_shared("shared", tested)
        self._write_shared("last", self.last)
        self._write_personal(tested)
        tuned = bool(self.study.training.fine_tune)
        sites = self._tuned(tested) if tuned else self.federation.sites.names
        replies = evaluated(self.federation, tested, "test", sites, cases=True, tuned=tuned)
        return tested, [score for reply in replies for score in reply.scores]

    def unseen(self, tested: State) -> list[CaseScore]:
        """Score the tested model at the sites that did not train, with their first private part."""
        guests = self.federation.guests
        weights = self._for_guests(tested) if guests else {}
        order = Evaluate(round=tested.round, since=0, split="test", cases=True, weights=weights)
        return [score for guest in guests for score in guest.answer(order).scores]

    def _for_guests(self, tested: State) -> Weights:
        """Give what of the model may reach a site that did not train, wherever it lies."""
        sites, first = self.folder / "sites", self.federation.sites.names[0]
        if self.federation.method.pooled:
            return read(sites / first / "private.safetensors")[0]
        if self.federation.topology.model_at_sites:
            return read(sites / first / "shared.safetensors")[0]
        return tested.weights

    def _write_shared(self, name: str, state: State) -> None:
        if self.federation.topology.model_at_sites:
            return  # the sites write it themselves
        notes = {"study": fingerprint(self.study), "round": str(state.round)}
        write(self.folder / "model" / f"{name}.safetensors", state.weights, notes)

    def _write_personal(self, tested: State) -> None:
        orders = {
            name: Finish(round=self.last.last_of(name), best=tested.last_of(name))
            for name in self.federation.sites.names
        }
        self.federation.sites.ask(orders, quorum=self.federation.topology.quorum)

    def _tuned(self, tested: State) -> tuple[str, ...]:
        """Let each site train the tested model on for itself alone; name those that could."""
        order = Tune(
            round=tested.round,
            since=0,
            epochs=self.study.training.fine_tune,
            weights=tested.weights,
        )
        sites = self.federation.sites
        orders = {name: replace(order, since=tested.last_of(name)) for name in sites.names}
        replies = sites.ask(orders, quorum=self.federation.topology.quorum)
        return tuple(reply.site for reply in replies)
