"""Whether arms can be compared: the same data, optimiser, local steps and evaluation for all."""

from collections.abc import Mapping
from itertools import chain

from grandrounds.arms import Arm
from grandrounds.errors import BadStudy
from grandrounds.study import Study
from grandrounds.study_file import changed_keys, to_table

EQUAL = ("rounds", "elements", "training", "stop", "site", "holdout_sites")


def differences(studies: Mapping[Arm, Study]) -> dict[Arm, tuple[str, ...]]:
    """Map each arm to the keys of its budget, data or evaluation that are not the first arm's."""
    budgets = {arm: _budget(study) for arm, study in studies.items()}
    first = next(iter(budgets.values()))
    return {arm: tuple(changed_keys(first, budget)) for arm, budget in budgets.items()}


def _budget(study: Study) -> dict[str, object]:
    table = to_table(study)
    return {key: table[key] for key in EQUAL if key in table}


def check_equal(studies: Mapping[Arm, Study]) -> None:
    """Refuse arms that are not trained, fed or judged alike. Raises `BadStudy`."""
    for arm, keys in differences(studies).items():
        if keys:
            raise BadStudy(
                f"arm '{arm.label}' differs from the first arm in {', '.join(keys)}, so the arms "
                "are not compared on equal terms. Set that for all arms with --set, or allow it "
                "with --unequal; the report will say so."
            )


def terms(studies: Mapping[Arm, Study]) -> list[str]:
    """Say what is equal for all arms, and which arms do more or other work than that."""
    unequal = differences(studies)
    return [
        _equal(next(iter(studies.values()))),
        *chain.from_iterable(
            _own_terms(arm.title(study), study, unequal[arm]) for arm, study in studies.items()
        ),
    ]


def _equal(study: Study) -> str:
    training, stop = study.training, study.stop
    epochs = "1 local epoch" if training.epochs == 1 else f"{training.epochs} local epochs"
    momentum = f" with momentum {training.momentum:g}" if training.momentum else ""
    tested = "the round that validates best" if stop.test == "best" else "the last round"
    return (
        f"equal for all arms: data, splits and seeds; {study.rounds} rounds of {epochs} "
        f"in batches of {training.batch_size}; {training.optimizer}{momentum}, "
        f"learning rate {training.learning_rate:g}, schedule {training.schedule}; tested: "
        f"the model of {tested}, on every test patient"
    )


def _own_terms(title: str, study: Study, differing: tuple[str, ...]) -> list[str]:
    method = study.build_method()
    plan, found = method.plan, list[str]()
    if differing:
        found.append(f"{title}: differs in {', '.join(differing)}, as asked for")
    if method.pooled:
        found.append(f"{title}: one model takes the steps of all sites together")
    if plan.private_epochs:
        found.append(f"{title}: {_more(plan.private_epochs)} in each round, of what stays alone")
    if plan.personal is not None:
        found.append(f"{title}: each site trains two models, so twice the steps")
    if study.training.fine_tune:
        found.append(f"{title}: {_more(study.training.fine_tune)} at each site in the end")
    if study.topology.kind in ("cyclic", "split"):
        found.append(f"{title}: one model takes all sites' steps of a round, one after the other")
    return found


def _more(epochs: int) -> str:
    return "1 more epoch" if epochs == 1 else f"{epochs} more epochs"
