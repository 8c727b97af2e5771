"""An arm of a comparison is a method over a topology; what is equal for all arms is checked.

Other arms are derived from models that were trained for one of these: `runs/derived.py`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain

from grandrounds.algorithms import method_class
from grandrounds.core.errors import BadStudy
from grandrounds.core.extensions import is_address
from grandrounds.core.names import MOST, check_distinct, check_name
from grandrounds.study.file import Table, changed_keys, parse_study, to_table
from grandrounds.study.study import Study
from grandrounds.tasks import Synthesis

NOT_TITLED = "aggregation.cosines_every="  # what is measured of an arm makes it no other arm
EQUAL = ("rounds", "elements", "training", "stop", "site", "holdout_sites")
DERIVED = ("alone", "ensemble", "sites-average")  # the first words of arms that train nothing
_BEFORE_OPTION = re.compile(r":(?=[^:=]+=)")
_TIMES = re.compile(r"steps=x([1-9][0-9]*)")


@dataclass(frozen=True)
class ArmChoice:
    """One arm: a method, a topology if not the study's own, and what else differs.

    It is written `METHOD[@TOPOLOGY][:KEY=VALUE[:KEY=VALUE]]`. A key without a dot is an option of
    the method; one with a dot is a path in the study. `steps=x4` trains an arm that is alone four
    times as long as the others.
    """

    label: str

    @property
    def kind(self) -> str:
        return self._head.partition("@")[0]

    @property
    def derived(self) -> bool:
        """Tell whether the arm trains nothing, and has its scores from models of other arms."""
        return self.kind in DERIVED

    @property
    def times(self) -> int:
        """Return how many times the local steps of the other arms this one is given."""
        found = [_TIMES.fullmatch(pair) for pair in self._pairs]
        return next((int(match[1]) for match in found if match), 1)

    @property
    def _head(self) -> str:
        """Return what stands before the first option: an address has a colon of its own."""
        derived = self.label.partition(":")[0]
        return derived if derived in DERIVED else _BEFORE_OPTION.split(self.label)[0]

    @property
    def _pairs(self) -> list[str]:
        return _BEFORE_OPTION.split(self.label)[1:]

    @property
    def topology(self) -> str:
        """Return the arm's topology; empty where the study's own is used."""
        return self._head.partition("@")[2]

    @property
    def name(self) -> str:
        """Return the name that the arm has in tables and folders; a long one is cut short."""
        name = re.sub(r"[^A-Za-z0-9]+", "-", self.label).strip("-")
        if len(name) <= MOST:
            return name
        end = f"-{sha256(self.label.encode()).hexdigest()[:8]}"
        return name[: MOST - len(end)] + end

    @property
    def overrides(self) -> tuple[str, ...]:
        """Return the options that differ from the study's, as `key=value`."""
        pairs = [pair for pair in self._pairs if not _TIMES.fullmatch(pair)]
        return tuple(pair if "." in pair.partition("=")[0] else f"method.{pair}" for pair in pairs)

    def title(self, study: Study) -> str:
        """Write the arm's name for people."""
        title = study.build_method().title
        told = [pair for pair in self.overrides if not pair.startswith(NOT_TITLED)]
        differing = [_said(pair) for pair in told]
        if self.topology:
            title = f"{title} over {self.topology}"
        if study.build_method().sharing().alone and isinstance(study.task, Synthesis):
            others = [_said(pair) for pair in told if not pair.startswith("task.generator=")]
            network = study.task.network or f"{study.task.generator}"
            differing = [f"{network.rpartition(':')[2]} network", *others]
        if self.times > 1:
            differing.append(f"{self.times} times the steps")
        return f"{title} ({', '.join(differing)})" if differing else title

    def study(self, table: Table, overrides: Sequence[str]) -> Study:
        """Make the arm's study from the comparison's. Raises `BadStudy`."""
        try:
            method_class(self.kind)
        except BadStudy as error:
            raise BadStudy(
                f"arm '{self.label}': {error}; derived from other arms: {', '.join(DERIVED)}"
            ) from None
        own = {**table, "method": {"kind": self.kind}, "arm": self.name}
        if self.topology:
            own["topology"] = {"kind": self.topology}
        study = parse_study(own, (*overrides, *self.overrides), source=f"arm '{self.label}'")
        if self.times > 1 and not study.build_method().sharing().alone:
            raise BadStudy(
                f"arm '{self.label}': steps=x{self.times} is for arms that train alone; to give "
                "all arms more, set training.epochs, or choose another --budget"
            )
        return self.lengthened(study, study.training.epochs)

    def lengthened(self, study: Study, epochs: int) -> Study:
        """Return the arm's study with its own number of these epochs, which all arms are given."""
        return replace(study, training=replace(study.training, epochs=epochs * self.times))

    def given(self, study: Study) -> Study:
        """Return the arm's study with the local epochs of arms that are not given more."""
        epochs = study.training.epochs // self.times
        return replace(study, training=replace(study.training, epochs=epochs))


def _said(pair: str) -> str:
    """Write a difference for people: a word by itself, a number or a switch with its name."""
    key, _, value = pair.partition("=")
    if re.fullmatch(r"task\.(network|loss)", key) and is_address(value):
        return value.rpartition(":")[2]
    if re.fullmatch(r"[a-z][a-z0-9-]*", value) and value not in ("true", "false"):
        return value
    return f"{key.rpartition('.')[2]} {value}".replace("_", " ")


def arms_of(labels: Sequence[str]) -> tuple[ArmChoice, ...]:
    """Read arms, each different from the others. Raises `BadStudy`."""
    arms = tuple(ArmChoice(label.strip()) for label in labels if label.strip())
    if not arms:
        raise BadStudy("a comparison needs one arm or more, for example --arms pflsynth,fedavg")
    labels_by_name = dict[str, list[str]]()
    for arm in arms:
        check_name(arm.name, f"arm '{arm.label}', in folders")
        labels_by_name.setdefault(arm.name, []).append(arm.label)
    for name, same in labels_by_name.items():
        if len(set(same)) > 1:
            raise BadStudy(f"arms '{same[0]}' and '{same[1]}' have one folder, '{name}'; give one")
        if len(same) > 1:
            raise BadStudy(f"arm '{same[0]}' is given {len(same)} times; give it once")
    check_distinct(labels_by_name, "arms, in folders,")
    return arms


def read_arms(
    labels: Sequence[str],
) -> tuple[tuple[ArmChoice, ...], tuple[ArmChoice, ...]]:
    """Read arms, those that are trained and those that are derived from them. Raises `BadStudy`."""
    arms = arms_of(labels)
    trained = tuple(arm for arm in arms if not arm.derived)
    if not trained:
        raise BadStudy(
            f"arm '{arms[0].label}' is derived from arms that are trained alone; give one beside "
            "it, for example local"
        )
    return trained, tuple(arm for arm in arms if arm.derived)


def check_equal(studies: Mapping[ArmChoice, Study]) -> None:
    """Refuse arms that differ in budget, data or evaluation. Raises `BadStudy`."""
    for arm, keys in budget_differences(studies).items():
        if keys:
            raise BadStudy(
                f"arm '{arm.label}' differs from the first arm in {', '.join(keys)}, so the arms "
                "are not compared on equal terms. Set that for all arms with --set, or allow it "
                "with --unequal; the report will say so."
            )


def budget_differences(studies: Mapping[ArmChoice, Study]) -> dict[ArmChoice, tuple[str, ...]]:
    """Map each arm to the keys of its budget, data or evaluation that are not the first arm's."""
    budgets = {arm: _budget(arm.given(study)) for arm, study in studies.items()}
    first = next(iter(budgets.values()))
    return {arm: tuple(changed_keys(first, budget)) for arm, budget in budgets.items()}


def _budget(study: Study) -> dict[str, object]:
    table = to_table(study)
    return {key: table[key] for key in EQUAL if key in table}


def comparison_terms(studies: Mapping[ArmChoice, Study], *, epochs_equal: bool = True) -> list[str]:
    """Write what is equal for all arms, and which arms do more or other work than that.

    Local epochs are not where another budget is the equal one.
    """
    unequal = {
        arm: tuple(key for key in keys if epochs_equal or key != "training.epochs")
        for arm, keys in budget_differences(studies).items()
    }
    first, study = next(iter(studies.items()))
    return [
        _equal(first.given(study), epochs_equal=epochs_equal),
        *chain.from_iterable(_own_terms(arm, each, unequal[arm]) for arm, each in studies.items()),
    ]


def _equal(study: Study, *, epochs_equal: bool) -> str:
    training, stop = study.training, study.stop
    epochs = "1 local epoch" if training.epochs == 1 else f"{training.epochs} local epochs"
    epochs = epochs if epochs_equal else "local epochs that the budget gives each arm,"
    momentum = f" with momentum {training.momentum:g}" if training.momentum else ""
    tested = "the round that validates best" if stop.test == "best" else "the last round"
    return (
        f"equal for all arms: data, splits and seeds; {study.rounds} rounds of {epochs} "
        f"in batches of {training.batch_size}; {training.optimizer}{momentum}, "
        f"learning rate {training.learning_rate:g}, schedule {training.schedule}; tested: "
        f"the model of {tested}, on every test patient"
    )


def _own_terms(arm: ArmChoice, study: Study, differing: tuple[str, ...]) -> list[str]:
    title, method, found = arm.title(study), study.build_method(), list[str]()
    if differing:
        found.append(f"{title}: differs in {', '.join(differing)}, as asked for")
    if arm.times > 1:
        found.append(f"{title}: it trains longer than the others, as a hospital alone may")
    if method.sharing().pooled:
        found.append(f"{title}: one model takes the steps of all sites together")
    if extra := method.extra_work():
        found.append(f"{title}: {extra}")
    if study.training.fine_tune:
        found.append(f"{title}: {_more(study.training.fine_tune)} at each site in the end")
    if study.topology.kind in ("cyclic", "split"):
        found.append(f"{title}: one model takes all sites' steps of a round, one after the other")
    return found


def _more(epochs: int) -> str:
    return "1 more epoch" if epochs == 1 else f"{epochs} more epochs"
