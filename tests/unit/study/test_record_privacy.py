import pytest

from grandrounds.core.errors import BadStudy
from tests.helpers.federation import tiny

RECORD = ("privacy.kind=record", "privacy.clip=1.0", "privacy.noise=2.0")
ALONE = "task.adversarial=0"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ((), "does not protect a GAN"),
        ((ALONE, "task.norm=batch"), "makes no sense with batch norm"),
        ((ALONE, "training.fine_tune=1"), "fine-tuning after the last round has no noise"),
        ((ALONE, "method.kind=central"), "pooled data belong to no one site"),
        ((ALONE, "method.kind=fedavg", "topology.kind=split"), "activations of single patients"),
    ],
)
def test_what_cannot_be_protected_is_refused_with_the_reason(
    overrides: tuple[str, ...], reason: str
):
    with pytest.raises(BadStudy, match=reason):
        tiny(*RECORD, *overrides)


def test_what_can_be_protected_is_a_study():
    assert tiny(*RECORD, ALONE).privacy.kind == "record"
