"""Which method, topology and aggregation a guard cannot serve, and the reason that is given."""

import pytest

from grandrounds.core.errors import BadStudy
from grandrounds.runs.costs import plan_run
from grandrounds.study.protection import UNSERVED
from tests.helpers.federation import tiny

CLIENT = ("method.kind=fedavg", "aggregation.shares=uniform", "privacy.kind=client",
          "privacy.clip=1.0", "privacy.noise=1.0")  # fmt: skip
INT8 = ("method.kind=fedavg", "exchange.kind=int8")
REFUSED: dict[tuple[str, ...], str] = {
    (*INT8, "topology.kind=cyclic"): 'exchange.kind = "int8" makes no sense over topology "cyclic"',
    (*INT8, "topology.kind=split"): 'exchange.kind = "int8" makes no sense over topology "split"',
    (*INT8, "method.kind=local"): 'would do nothing: method "local" sends no update',
    (*INT8, "training.first_broadcast=false"): "needs training.first_broadcast = true",
    (*CLIENT, "topology.kind=relay", "topology.groups=2"): 'makes no sense over topology "relay"',
    (*CLIENT, "topology.require=2"): 'needs topology.require = "all": each site adds its share',
    (*CLIENT, "aggregation.shares=cases"): 'needs aggregation.shares = "uniform", not "cases"',
    (*CLIENT, "aggregation.rate=measured"): "aggregation.rate = 1.0",
    (*CLIENT, "aggregation.cosines_every=1"): "makes no sense with aggregation.cosines_every",
    (
        *CLIENT,
        "aggregation.kind=median",
        "aggregation.shares=cases",
    ): 'needs aggregation.kind = "mean"',
    (*CLIENT, "method.kind=scaffold"): 'makes no sense with method "scaffold"',
    (*CLIENT, "method.kind=fedmri"): 'makes no sense with method "fedmri"',
    (*CLIENT, "task.norm=batch"): 'needs training.norm_buffers = "private" or "reset"',
}
SERVED = (
    (*INT8, "topology.kind=swarm"),
    (*INT8, "topology.kind=relay"),
    (*INT8, "topology.require=2"),
    ("method.kind=scaffold", "exchange.kind=bf16"),
    (*INT8, "training.first_broadcast=false", "exchange.deltas=false"),
    (*CLIENT, "topology.kind=swarm"),
    (*CLIENT, "method.kind=fedopt"),
    (*CLIENT, "method.kind=ditto"),
    (*CLIENT, "task.norm=batch", "training.norm_buffers=private"),
    (*CLIENT, "task.norm=batch", "method.kind=fedbn"),
    (*CLIENT, "exchange.kind=topk", "exchange.fraction=0.1"),
)


@pytest.mark.parametrize("options", REFUSED)
def test_what_a_guard_cannot_serve_is_refused_with_the_reason(options: tuple[str, ...]):
    with pytest.raises(BadStudy) as refusal:
        tiny(*options)
    assert REFUSED[options] in str(refusal.value)


@pytest.mark.parametrize("options", SERVED)
def test_what_a_guard_serves_is_taken(options: tuple[str, ...]):
    assert tiny(*options).build_method().guards


def test_a_network_of_which_sites_use_parts_gets_too_little_noise():
    parts = ("method.kind=fedgan", "aggregation.rate=1.0")
    with pytest.raises(BadStudy, match="some site does not use all of the network"):
        plan_run(tiny(*CLIENT, *parts))


def test_every_demand_of_the_study_has_its_sentence():
    """But for "all tensors", which the plan knows."""
    study = tiny(*CLIENT, "exchange.kind=int8")
    demands = {demand for guard in study.build_method().guards.steps for demand in guard.needs()}
    assert demands - {"all tensors"} <= set(UNSERVED)
