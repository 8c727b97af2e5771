"""These checks find what cannot be trained with differential privacy of each patient."""

from collections.abc import Iterator

from grandrounds.algorithms.cyclic import Cyclic
from grandrounds.algorithms.method import Method
from grandrounds.algorithms.split import Split
from grandrounds.algorithms.topology import Topology
from grandrounds.study.study import Study
from grandrounds.tasks import Synthesis, Tabular

_RECORD = 'privacy.kind = "record"'


def record_problems(
    study: Study, method: Method, topology: Topology, *, statistics: bool
) -> Iterator[str]:
    """Yield why a patient's part in a study's model cannot be bounded.

    `statistics` tells whether the network keeps running statistics.
    """
    if study.privacy.kind != "record":
        return
    if statistics:
        yield (
            f"{_RECORD} makes no sense with batch norm, which mixes patients and keeps statistics "
            'of them without noise; set task.norm = "instance", or take a network with GroupNorm'
        )
    if isinstance(topology, Split):
        yield (
            f'{_RECORD} makes no sense over topology "split": activations of single patients '
            'cross the cut in every step; choose topology.kind = "star" or "swarm"'
        )
    if isinstance(topology, Cyclic) and topology.turn == "steps" and topology.proportional:
        yield (
            f"{_RECORD} needs turns whose length is known: remove topology.proportional, or set "
            'topology.turn = "epochs"'
        )
    if method.sharing().pooled:
        yield (
            f'{_RECORD} makes no sense with method "{study.method.kind}": pooled data belong to no '
            "one site, which alone can keep their budget"
        )
    if study.training.fine_tune:
        yield (
            f"{_RECORD} and training.fine_tune exclude each other: fine-tuning after the last "
            "round has no noise, and its scores leave the site; set training.fine_tune = 0"
        )
    yield from _of_task(study)


def _of_task(study: Study) -> Iterator[str]:
    if isinstance(study.task, Synthesis) and study.task.adversarial:
        yield (
            f"{_RECORD} does not protect a GAN: here the generator, too, sees the real targets, so "
            "noise on the critics alone would protect nobody; set task.adversarial = 0"
        )
    if isinstance(study.task, Tabular):
        yield (
            f'{_RECORD} makes no sense with task.kind = "tabular": every row is scaled by the mean '
            "and deviation of all patients of its site, so one patient changes all rows; choose "
            'privacy.kind = "client"'
        )
