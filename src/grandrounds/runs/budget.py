"""A budget is the cost of training that is equal for all arms of a comparison.

Averaging the moves of several sites leaves a model that has taken no more steps in a row than one
of them; weight transfer and pooled data take the steps of all, one after another. So equal local
steps are unequal depths, and the other way round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from grandrounds.algorithms.cyclic import Cyclic
from grandrounds.core.errors import BadStudy
from grandrounds.runs.arms import ArmChoice, comparison_terms
from grandrounds.runs.site_data import Preparing, nobody_told, open_sites
from grandrounds.study.site_file import SiteSource
from grandrounds.study.study import Study

BudgetKind: TypeAlias = Literal["local-steps", "steps-in-a-row", "wall-clock"]
BUDGETS: tuple[BudgetKind, ...] = get_args(BudgetKind)
ExamplesBySite: TypeAlias = Mapping[str, int]  # site -> training examples
Studies: TypeAlias = Mapping[ArmChoice, Study]


@dataclass(frozen=True)
class ArmSteps:
    """What an arm's training costs, in steps of all rounds, if no round is lost.

    `local` is the largest site's; `in_a_row` the most that the tested model can take one after
    another, the largest site's of each group of sites that train side by side; `wall_clock` counts
    the same groups, which wait for each other, with the steps of all models that a site trains.
    """

    local: int
    in_a_row: int
    wall_clock: int


def arm_steps(study: Study, examples: ExamplesBySite, *, epochs: int = 0) -> ArmSteps:
    """Count the steps of a study, or of one with this many local epochs."""
    given, method = epochs or study.training.epochs, study.build_method()
    trained, computed = method.epochs_in_a_row(given), method.epochs_at_site(given)
    batches = _batches(study, examples)
    depth = study.rounds * sum(batches[: _in_a_row(study)])
    return ArmSteps(study.rounds * trained * batches[0], trained * depth, computed * depth)


def _batches(study: Study, examples: ExamplesBySite) -> list[int]:
    """Return each trainer's batches of an epoch, most first; pooled data are one trainer."""
    counts = [examples[name] for name in study.trainers]
    if study.build_method().sharing().pooled:
        counts = [sum(counts)]
    return sorted((-(-count // study.training.batch_size) for count in counts), reverse=True)


def _in_a_row(study: Study) -> int:
    sharing = study.build_method().sharing()
    if sharing.alone or sharing.pooled:
        return 1
    return study.build_topology().in_a_row(len(study.trainers))


def count_examples(
    study: Study, files: Sequence[SiteSource], preparing: Preparing = nobody_told
) -> ExamplesBySite:
    """Count each site's training examples. Raises as `open_sites` does."""
    task, opened = study.make_task(), open_sites(study, files, preparing=preparing)
    return {name: len(task.training_examples(opened[name].cohorts)) for name in study.trainers}


@dataclass(frozen=True)
class Budget:
    """The cost that is equal for all arms, and each site's training examples."""

    kind: BudgetKind = "local-steps"
    examples: ExamplesBySite = field(default_factory=dict[str, int])

    def fit(self, studies: Studies) -> dict[ArmChoice, Study]:
        """Give every arm the local epochs a round with which it comes nearest to the costliest arm.

        Rounds stay, so that validation and the learning rate's schedule do. Raises `BadStudy`.
        """
        if self.kind == "local-steps":
            return dict(studies)
        given = {arm: arm.given(study) for arm, study in studies.items()}
        for arm, study in given.items():
            _check_scales(arm, study, self.kind)
        target = max(self._cost(study, study.training.epochs) for study in given.values())
        return {
            arm: arm.lengthened(study, self._epochs(study, target)) for arm, study in given.items()
        }

    def _cost(self, study: Study, epochs: int) -> int:
        found = arm_steps(study, self.examples, epochs=epochs)
        return found.in_a_row if self.kind == "steps-in-a-row" else found.wall_clock

    def _epochs(self, study: Study, target: int) -> int:
        most = 1 + target // (study.rounds * _batches(study, self.examples)[0])
        return min(range(1, most + 1), key=lambda epochs: abs(self._cost(study, epochs) - target))

    def terms(self, studies: Studies) -> list[str]:
        """Write what is equal for all arms, what the others then are, and who does otherwise."""
        equal = comparison_terms(studies, epochs_equal=self.kind == "local-steps")
        if not self.examples:
            return equal
        return [*equal, self._sentence, *(self._spent(arm, studies[arm]) for arm in studies)]

    @property
    def _sentence(self) -> str:
        said = {
            "local-steps": "equal budget: local steps, the same epochs at every hospital",
            "steps-in-a-row": "equal budget: steps in a row of the tested model, as near to the "
            "deepest arm's as whole local epochs come",
            "wall-clock": "equal budget: wall-clock, in steps of those that wait for one another, "
            "as near to the slowest arm's as whole local epochs come",
        }
        return said[self.kind]

    def _spent(self, arm: ArmChoice, study: Study) -> str:
        title = arm.title(study)
        if isinstance(topology := study.build_topology(), Cyclic) and topology.length:
            return f"{title}: its turns are topology.length, so its steps are not counted here"
        found, epochs = arm_steps(study, self.examples), study.training.epochs
        noun = "local epoch" if epochs == 1 else "local epochs"
        pooled = study.build_method().sharing().pooled
        local = "on all data" if pooled else "at the hospital with the most"
        return (
            f"{title}: {epochs} {noun} a round; {found.local:,} local steps {local}, "
            f"{found.in_a_row:,} steps in a row, wall-clock of {found.wall_clock:,} steps"
        )


def _check_scales(arm: ArmChoice, study: Study, kind: BudgetKind) -> None:
    topology = study.build_topology()
    if isinstance(topology, Cyclic) and topology.length:
        raise BadStudy(
            f"arm '{arm.label}': its turns are topology.length = {topology.length}, so --budget "
            f"{kind} cannot make them longer; leave it 0, so that training.epochs counts"
        )
