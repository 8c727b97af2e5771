"""A study whose parts cannot be summed up under masks is refused, with the reason."""

import pytest

from grandrounds.core.errors import BadStudy
from grandrounds.study.checks import check_pairs
from tests.helpers.federation import tiny

MASKED = ("method.kind=fedavg", "privacy.secure_sum=true")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("topology.kind=cyclic",), "masks cancel in one sum"),
        (("topology.kind=relay", "topology.groups=2"), "topology"),
        (("topology.kind=relay", "topology.groups=1"), "is not built over topology"),
        (("aggregation.kind=median",), 'needs aggregation.kind = "mean"'),
        (("aggregation.cosines_every=1",), "makes no sense with aggregation.cosines_every"),
        (("aggregation.rate=measured",), "aggregation.rate"),
        (("method.kind=scaffold",), 'makes no sense with method "scaffold"'),
        (("method.kind=fedmri",), 'makes no sense with method "fedmri"'),
        (("exchange.kind=int8",), 'needs exchange.kind = "full"'),
        (("training.first_broadcast=false",), "needs training.first_broadcast = true"),
    ],
)
def test_what_masks_cannot_serve_is_refused(overrides: tuple[str, ...], words: str):
    with pytest.raises(BadStudy, match=words):
        check_pairs(tiny(*MASKED, *overrides))


def test_two_sites_are_too_few():
    with pytest.raises(BadStudy, match="needs three sites or more that train"):
        check_pairs(tiny(*MASKED, sites=2))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("topology.kind=swarm",),
        ("topology.require=3", "privacy.on_dropout=repeat"),
        ("aggregation.shares=uniform",),
    ],
)
def test_what_masks_can_serve_passes(overrides: tuple[str, ...]):
    check_pairs(tiny(*MASKED, *overrides))
