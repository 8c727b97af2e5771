"""The seam of methods, as one who writes a method uses it: on real sites of the tiny study."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from grandrounds.algorithms import METHODS
from grandrounds.algorithms.method import LocalRound, Method, Pull, Update
from grandrounds.algorithms.sharing import Sharing
from grandrounds.core.errors import BadStudy, BadUpdate, SiteFailed
from grandrounds.core.weights import digest
from grandrounds.study.checks import complete
from grandrounds.study.study import Choice, Study
from tests.helpers.federation import built, played, tiny


@contextmanager
def known(method: type[Method]) -> Iterator[None]:
    METHODS["mine"] = method
    try:
        yield
    finally:
        del METHODS["mine"]


def outcome(method: type[Method], folder: Path, study: Study, rounds: int = 2) -> list[str]:
    """The digests of what is shared and of what each site keeps."""
    with known(method):
        federation = built(complete(mine_in(study)), folder)
        last = played(federation, rounds)[-1]
    return [digest(last.state.weights), *(reply.digest for reply in last.replies)]


def mine_in(study: Study) -> Study:
    return replace(study, method=Choice("mine"))


@dataclass(frozen=True)
class Nothing(Method):
    pass


@dataclass(frozen=True)
class WrittenOut(Method):
    def train(self, site: LocalRound) -> Update:
        for batch in site.batches():
            for part, loss in site.losses(batch):
                site.step(part, loss)
        return site.update()


@dataclass(frozen=True)
class Restarted(Method):
    """Trains twice from the same start; the second counts."""

    def train(self, site: LocalRound) -> Update:
        site.train(Pull(100.0, towards=site.start))
        site.restart(site.first)
        return site.train()


@dataclass(frozen=True)
class Untold(Method):
    def train(self, site: LocalRound) -> Update:
        return site.train().sending(more={"loss": torch.ones(1)})


@dataclass(frozen=True)
class Leaky(Method):
    def sharing(self) -> Sharing:
        return Sharing(private=("head",), sends=("more",))

    def train(self, site: LocalRound) -> Update:
        update = site.train()
        own = {n: t for n, t in update.model.items() if "/" not in n and not site.travels(n)}
        return update.sending(more=own)


@dataclass(frozen=True)
class Announced(Method):
    def sharing(self) -> Sharing:
        return Sharing(sends=("more",))

    def train(self, site: LocalRound) -> Update:
        return site.train().sending(more={"loss": torch.ones(1)})


@pytest.mark.slow
@pytest.mark.parametrize("method", [Nothing, WrittenOut])
def test_what_a_method_does_not_say_is_fedavg_to_the_bit(method: type[Method], tmp_path: Path):
    study = tiny("method.kind=fedavg", sites=2)
    assert outcome(method, tmp_path / "mine", study) == outcome(
        METHODS["fedavg"], tmp_path / "fedavg", study
    )


@pytest.mark.slow
def test_a_restart_forgets_all_that_was_trained(tmp_path: Path):
    study = tiny("method.kind=fedavg", sites=2)
    assert outcome(Restarted, tmp_path / "mine", study, 1) == outcome(
        METHODS["fedavg"], tmp_path / "fedavg", study, 1
    )


@pytest.mark.slow
def test_a_set_that_was_not_announced_stays(tmp_path: Path):
    with pytest.raises(SiteFailed) as refused:
        outcome(Untold, tmp_path, tiny(sites=2), 1)
    assert refused.value.card.error == BadUpdate.__name__
    assert refused.value.card.message == (
        "Untold would send 'more/loss', which its sharing does not name in sends"
    )


def test_a_set_of_what_must_stay_stays(tmp_path: Path):
    with pytest.raises(SiteFailed) as refused:
        outcome(Leaky, tmp_path, tiny(sites=2), 1)
    assert refused.value.card.message.startswith("Leaky would send 'more/")
    assert refused.value.card.message.endswith("whose tensor stays at the site")


@dataclass(frozen=True)
class Overwriting(Method):
    def train(self, site: LocalRound) -> Update:
        return site.train().keeping(memory={"pool": torch.ones(1)})


def test_a_set_under_a_name_of_the_house_is_refused(tmp_path: Path):
    with pytest.raises(SiteFailed) as refused:
        outcome(Overwriting, tmp_path, tiny(sites=2), 1)
    assert "would keep a set 'memory'" in refused.value.card.message


def test_a_set_that_was_announced_reaches_the_server_and_is_no_weight(tmp_path: Path):
    with known(Announced):
        federation = built(complete(mine_in(tiny(sites=2))), tmp_path)
        [first] = played(federation, 1)
    assert all("more/loss" in reply.weights for reply in first.replies)
    assert not [name for name in first.state.weights if "/" in name]


@pytest.mark.parametrize(
    ("topology", "reason"),
    [
        (("split", {"cut": "encoder.2"}), "a site trains by a rule of the method, on its whole"),
        (("cyclic", {}), None),
    ],
)
def test_a_rule_of_its_own_is_never_left_out_in_silence(
    topology: tuple[str, Mapping[str, str]], reason: str | None
):
    study = replace(tiny("method.kind=fedavg", sites=2), topology=Choice(*topology))
    with known(WrittenOut):
        if reason is None:
            complete(mine_in(study))
            return
        with pytest.raises(BadStudy, match=f'method "mine" makes no sense .*"split": {reason}'):
            complete(mine_in(study))


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("fedprox", "mu", -1.0),
        ("fedprox", "mu", float("nan")),
        ("fedopt", "rate", float("inf")),
        ("fedrep", "head_epochs", 0),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(kind: str, option: str, value: float):
    with pytest.raises(BadStudy, match=rf"method.{option} is .*; it must be"):
        METHODS[kind](**{option: value}).check()  # pyright: ignore[reportCallIssue, reportArgumentType]
