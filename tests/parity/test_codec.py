"""An engine only carries messages: the same numbers, whether or not they cross as bytes."""

from pathlib import Path

import pytest

from grandrounds.core.messages import Reply, Request, decode, encode
from grandrounds.runs import build as blueprint
from grandrounds.runs.loop import run_study as run
from grandrounds.site.site import Promise, Site
from tests.helpers.federation import assert_trained, built, digests, rows, tiny

crossed: list[str] = []


class FarSite(Site):
    """A site that is reached by wire alone: every request and every reply crosses as bytes."""

    def begin(self, request: Request) -> Promise:
        arrived = decode(encode(request))
        crossed.append(type(arrived).__name__)
        promise = super().begin(arrived)  # pyright: ignore[reportArgumentType]
        return lambda: returned(promise())


def returned(reply: Reply) -> Reply:
    arrived = decode(encode(reply))
    assert isinstance(arrived, Reply)
    return arrived


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("method.kind=pflsynth",),
        ("method.kind=pflsynth", "method.split=wide"),
        ("method.kind=fedavg", "task.norm=batch"),
        ("method.kind=fedbn", "task.norm=batch"),
        ("method.kind=local",),
        ("method.kind=central",),
    ],
    ids=" ".join,
)
def test_a_run_over_the_wire_has_the_same_digests_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
):
    study = tiny("rounds=2", *options, sites=2)
    near = run(study, tmp_path / "near")
    monkeypatch.setattr(blueprint, "Site", FarSite)
    crossed.clear()
    run(study, tmp_path / "far")
    assert set(crossed) == {"Describe", "Train", "Evaluate", "Finish"}
    assert digests(tmp_path / "far") == digests(tmp_path / "near")
    assert rows(tmp_path / "far/scores.csv") == rows(tmp_path / "near/scores.csv")
    assert len(set(digests(tmp_path / "near"))) == 2
    if near.weights:
        assert_trained(built(study, tmp_path / "start").start.weights, near.weights)
