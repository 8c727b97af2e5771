"""These functions check a study as a whole, and refuse it with one sentence."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

from grandrounds.algorithms.method import Method
from grandrounds.algorithms.relay import Relay
from grandrounds.algorithms.star import Star
from grandrounds.core.errors import BadStudy, require
from grandrounds.core.names import check_distinct, check_name, check_site_name
from grandrounds.core.site_statistics import EVERYONE_HERE
from grandrounds.data.acquisition import QUANTITIES
from grandrounds.data.availability import VARIABLES
from grandrounds.data.elements import FLOORS, STATED_OF_IMAGES, Elements
from grandrounds.data.people import values_of
from grandrounds.data.session_files import is_outline
from grandrounds.study.compatibility import (
    aggregation_problems,
    check_split,
    cosine_problems,
    joining_problems,
    need_problems,
    pair_problems,
    rate_problems,
    topology_problems,
)
from grandrounds.study.protection import protection_problems
from grandrounds.study.study import SiteSpec, Study
from grandrounds.tasks import SupervisedTask, Synthesis
from grandrounds.tasks.classification import ClassificationTask
from grandrounds.tasks.outside import Outside, keeps_statistics
from grandrounds.tasks.segmentation import SegmentationTask
from grandrounds.tasks.synthesis.task import SynthesisTask

SPACINGS = (0.02, 100.0)  # mm; below, a study was written in metres
NETWORKS = {"generator": "plain", "norm": "instance"}  # where a method prefers no other


def complete(study: Study) -> Study:
    """Fill in the options that depend on others, then check everything. Raises `BadStudy`."""
    if isinstance(study.task, Synthesis):
        task = _with_networks(study.task, study.build_method())
        study = replace(study, task=_with_place(task, parity=study.parity))
    for check in _CHECKS:
        check(study)
    return study


def _with_networks(task: Synthesis, method: Method) -> Synthesis:
    """Choose the generator and norm that a method is designed for, where the study has "auto"."""
    preferred = NETWORKS | dict(method.prefers())
    chosen: dict[str, Any] = {
        option: preferred[option] for option in NETWORKS if getattr(task, option) == "auto"
    }
    return replace(task, **chosen)


def _with_place(task: Synthesis, *, parity: bool) -> Synthesis:
    """Place the personalisation blocks where the study does not: in the branch, or as published."""
    if task.block_place or task.generator != "personalised":
        return task
    return replace(task, block_place="after" if parity else "branch")


def check_names(study: Study) -> None:
    """Refuse names that cannot be folders, or that NVFlare does not take."""
    check_name(study.name, "study name")
    if study.arm:
        check_name(study.arm, "arm")
    for site in study.site:
        check_site_name(site.name)
    check_distinct(study.roster, "sites")


def check_counts(study: Study) -> None:
    """Refuse counts and rates that are out of range."""
    least = {
        "rounds": (study.rounds, 1),
        "training.batch_size": (study.training.batch_size, 1),
        "training.epochs": (study.training.epochs, 1),
        "training.threads": (study.training.threads, 0),
        "stop.patience": (study.stop.patience, 0),
        "stop.validate_every": (study.stop.validate_every, 1),
    }
    for path, (value, low) in least.items():
        require(value >= low, f"{path} is {value}; it must be {low} or more")
    require(study.training.learning_rate > 0, "training.learning_rate must be above 0")


def check_study_elements(study: Study) -> None:
    """Refuse common data elements that no network or split can use."""
    elements = study.elements
    require(
        len(set(elements.contrasts)) == len(elements.contrasts),
        f"elements.contrasts names a contrast twice: {', '.join(elements.contrasts)}",
    )
    words = (*elements.contrasts, *elements.variables)
    require(
        len(set(words)) == len(words),
        f"elements.variables names a variable twice, or a contrast: {', '.join(words)}",
    )
    for name in elements.contrasts:
        require(
            not is_outline(name),
            f"elements.contrasts: '{name}' names a mask or labels, which no site gives as a "
            "contrast; a structure stands on the right of a task, as in T1w->lesion",
        )
    least, most = SPACINGS
    require(
        min(elements.spacing) > 0,
        "elements.spacing must be above 0 (mm)",
    )
    require(
        least <= min(elements.spacing) and max(elements.spacing) <= most,
        f"elements.spacing is {list(elements.spacing)}; it is in millimetres, "
        f"from {least:g} to {most:g}",
    )
    _check_windows(elements)
    _check_stated(study)
    parts = elements.split
    total = parts.train + parts.validation + parts.test
    require(
        abs(total - 1) < 1e-6 and min(parts.train, parts.test) > 0 and parts.validation >= 0,
        f"elements.split adds up to {total:g}; "
        "train and test must be above 0 and all three add up to 1",
    )


def _check_windows(elements: Elements) -> None:
    """Refuse windows of grey values that are none, or of contrasts that the study does not have."""
    for name, (low, high) in (elements.intensity or {}).items():
        require(
            name in elements.contrasts,
            f"elements.intensity: '{name}' is not in elements.contrasts "
            f"({', '.join(elements.contrasts)})",
        )
        require(
            low < high,
            f"elements.intensity.{name} is [{low:g}, {high:g}]; the low end of a window comes "
            "first, for example [0, 80]",
        )


def _check_stated(study: Study) -> None:
    """Refuse elements that no site's data could meet, and a floor that protects nobody."""
    elements, (least, most) = study.elements, FLOORS
    ranges = {
        "spacing_in_plane": (elements.spacing_in_plane, SPACINGS, "mm"),
        "spacing_through": (elements.spacing_through, SPACINGS, "mm"),
        "age": (elements.age, (0.0, 130.0), "years"),
    }
    for name, (found, (low, high), unit) in ranges.items():
        require(
            found is None or low <= found[0] < found[1] <= high,
            f"elements.{name} is {found and list(found)}; it is the lowest and the highest, in "
            f"{unit}, from {low:g} to {high:g}",
        )
    for strength in elements.field_strengths or ():
        low, high = QUANTITIES["field_strength"].low, QUANTITIES["field_strength"].high
        require(
            low <= strength <= high,
            f"elements.field_strengths has {strength:g}; it is in tesla, from {low:g} to {high:g}",
        )
    require(
        elements.floor is None or least <= elements.floor <= most,
        f"elements.floor is {elements.floor}; it must be from {least} (of two people each knows "
        f"the other) to {most}",
    )
    _check_labels(elements)
    _check_minimum(study)


def _check_labels(elements: Elements) -> None:
    for mask, structures in (elements.labels or {}).items():
        values = list(structures.values())
        require(
            mask not in (*elements.contrasts, *elements.variables),
            f"elements.labels: '{mask}' is a contrast or a variable; labels are of a mask, for "
            "example labels.lesion = { lesion = 1 }",
        )
        require(
            bool(values) and len(set(values)) == len(values) and min(values) > 0,
            f"elements.labels.{mask} gives the values {values}; each structure has one of its own, "
            "above 0, which is outside",
        )


def _check_minimum(study: Study) -> None:
    values = [value for name in study.elements.variables for value in values_of(name)]
    known = (EVERYONE_HERE, *sorted(study.names - {VARIABLES, *study.roster}), *values)
    for name, number in (study.elements.minimum or {}).items():
        require(
            name in known,
            f"elements.minimum: '{name}' is not of this study; it has {', '.join(known)}",
        )
        require(number >= 1, f"elements.minimum.{name} is {number}; it must be 1 or more")


def check_sites(study: Study) -> None:
    """Refuse a roster that is empty, has a name twice, or has a site without tasks."""
    require(bool(study.site), "the study names no [[site]]; it needs one or more")
    names = [site.name for site in study.site]
    for name in names:
        require(names.count(name) == 1, f"two sites are named '{name}'; site names must differ")
    for site in study.site:
        require(
            bool(site.tasks), f"site '{site.name}' has no tasks; for example tasks = [\"T1w->T2w\"]"
        )


def check_holdout(study: Study) -> None:
    """Refuse held-out sites on which no model can be tested."""
    holdout = study.holdout_sites
    if not holdout:
        return
    for name in holdout:
        known = ", ".join(study.roster)
        require(
            name in study.roster, f"holdout_sites: the study has no site '{name}'; it has {known}"
        )
    require(
        bool(study.trainers), "holdout_sites names every site of the study; one or more must train"
    )
    for name, tasks in study.held_out.items():
        require(
            bool(tasks),
            f"holdout_sites: no other site trains a task of site '{name}', so there is no model to "
            "test there; give the site a task of the others",
        )
    require(
        not study.build_method().sharing().alone,
        f'holdout_sites would do nothing for method "{study.method.kind}": no model reaches a site '
        "that does not train",
    )
    require(
        study.topology.kind != "split",
        'holdout_sites makes no sense over topology "split": a site that does not train has no '
        "part of the network",
    )


def check_task_options(study: Study) -> None:
    """Run the checks of the task's options."""
    if isinstance(study.task, SupervisedTask):
        _check_own_task(study, study.task)
    study.task.check(study.elements, study.roster)


def _check_own_task(study: Study, task: SupervisedTask) -> None:
    """Refuse what a task that reads its data itself does not use."""
    word, plain = f'task.kind = "{task.kind}"', Elements()
    for name in ("contrasts", "spacing", "variables", "intensity", *STATED_OF_IMAGES):
        require(
            getattr(study.elements, name) == getattr(plain, name),
            f"elements.{name} would do nothing: {word} reads its data itself, and uses "
            "elements.split and elements.size alone",
        )
    for site in study.site:
        require(
            site.data == "files",
            f"site '{site.name}' is simulated, and {word} reads a dataset; take data = "
            '"simulated" away, and give the site its site file',
        )
        require(
            len(site.tasks) <= 1,
            f"site '{site.name}' has the tasks {', '.join(site.tasks)}; all items of a site are of "
            f"one task, so with {word} it has one label",
        )
    require(
        task.cases_at_once >= 1,
        f"{word}: cases_at_once is {task.cases_at_once}; it must be 1 or more",
    )


def check_simulated(study: Study) -> None:
    """Refuse simulated sites whose scanner or patients cannot serve the study."""
    for site in study.site:
        if site.data != "simulated":
            _check_unsimulated(site)
            continue
        require(
            not study.elements.intensity,
            f"site '{site.name}': elements.intensity would do nothing: simulated images are in "
            "[0, 1] already",
        )
        for contrast in study.elements.contrasts:
            sequences = ", ".join(site.scanner.protocol) or "nothing"
            require(
                contrast in site.scanner.protocol,
                f"site '{site.name}': its scanner.protocol has no sequence "
                f"for contrast '{contrast}' (it has {sequences})",
            )
        require(
            site.patients.train >= 1 and site.patients.test >= 1 and site.patients.validation >= 0,
            f"site '{site.name}': patients must give one or more to train and to test",
        )
        require(
            site.slices >= 1, f"site '{site.name}': slices is {site.slices}; it must be 1 or more"
        )


def _check_unsimulated(site: SiteSpec) -> None:
    default = SiteSpec(site.name, site.tasks)
    for key in ("scanner", "patients", "slices"):
        require(
            getattr(site, key) == getattr(default, key),
            f"site '{site.name}': {key} would do nothing: the site has files; it is for a site "
            'with data = "simulated"',
        )


def check_pairs(study: Study) -> None:
    """Refuse combinations that are not possible."""
    method, topology, sites = study.build_method(), study.build_topology(), len(study.trainers)
    problems = chain(
        topology_problems(topology, sites),
        joining_problems(topology, study),
        pair_problems(study.method.kind, method, study.aggregation, topology),
        need_problems(study, topology),
        aggregation_problems(method, study.aggregation, sites),
        rate_problems(study, topology, sites),
        cosine_problems(study, method, topology),
        protection_problems(study, method, topology, statistics=has_running_statistics(study)),
    )
    for sentence in problems:
        raise BadStudy(sentence)


def check_network(study: Study) -> None:
    """Try a network and a loss from outside without data. Raises `BadStudy`."""
    has_running_statistics(study)


def has_running_statistics(study: Study) -> bool:
    """Tell whether the study's network counts statistics of batches. Raises `BadStudy`."""
    options, task = study.task, study.make_task()
    if not isinstance(options, Outside) or not (options.network or options.loss):
        return options.has_statistics
    assert isinstance(task, SegmentationTask | ClassificationTask | SynthesisTask)
    counts = keeps_statistics(task, cases=study.training.batch_size)
    return counts if options.network else options.has_statistics


def check_training(study: Study) -> None:
    """Refuse options of training that are out of range or have no effect."""
    training, kind = study.training, study.method.kind
    require(0 <= training.momentum < 1, "training.momentum must be from 0 to below 1")
    require(
        not training.momentum or training.optimizer == "sgd",
        'training.momentum would do nothing: training.optimizer is "adam", '
        "whose momentum is the first of training.betas",
    )
    require(training.fine_tune >= 0, "training.fine_tune must be 0 or more (epochs)")
    require(
        not training.fine_tune or not study.build_method().sharing().pooled,
        f'training.fine_tune makes no sense for method "{kind}": its data belong to no one site',
    )
    for site in study.site:
        require(site.share > 0, f"site '{site.name}': share is {site.share:g}; it must be above 0")
        require(
            site.share == 1 or study.aggregation.shares == "given",
            f"site '{site.name}': share would do nothing; it needs aggregation.shares = \"given\"",
        )


def check_codes(study: Study) -> None:
    """Refuse codes of protocols where a study reproduces the released program, which has none."""
    require(
        not (study.parity and study.reads_protocols),
        'task.codes = "protocol" and parity = true exclude each other: the released pFLSynth code '
        "knows a hospital by its name",
    )


def check_method_options(study: Study) -> None:
    """Refuse wrong options, a method that does not fit the task, and policies without effect."""
    method = study.build_method()
    method.check()
    method.check_task(study.task)
    require(
        study.training.norm_buffers == "follow" or has_running_statistics(study),
        f'training.norm_buffers = "{study.training.norm_buffers}" would do nothing: '
        + _without_statistics(study),
    )
    require(
        getattr(study.task, "statistics_at_evaluation", None) != "image"
        or study.task.has_statistics
        or study.parity,  # which fills it in for any norm
        'task.statistics_at_evaluation = "image" would do nothing: task.norm is "instance", which '
        'keeps no running statistics. Remove it, or set task.norm = "batch".',
    )


def _without_statistics(study: Study) -> str:
    if isinstance(study.task, SupervisedTask):
        return "the network keeps no running statistics. Remove it."
    if isinstance(study.task, Outside) and study.task.network:
        return f'task.network = "{study.task.network}" keeps no running statistics. Remove it.'
    return (
        'task.norm is "instance", which keeps no running statistics. '
        'Remove it, or set task.norm = "batch".'
    )


_CHECKS: tuple[Callable[[Study], None], ...] = (
    check_names,
    check_counts,
    check_study_elements,
    check_sites,
    check_holdout,
    check_task_options,
    check_simulated,
    check_network,
    check_codes,
    check_method_options,
    check_pairs,
    check_split,
    check_training,
)


def notes(study: Study) -> tuple[str, ...]:
    """Return sentences on choices that are allowed but may surprise."""
    method = study.build_method()
    sentences: list[str] = []
    counts = has_running_statistics(study)
    if "norm" in method.sharing().private and not counts:
        sentences.append(
            f"{study.method.kind} keeps no layer at a site: the network has no batch norm"
        )
    for name, tasks in study.held_out.items():
        untrained = [label for label in study.roster[name] if label not in tasks]
        if untrained:
            sentences.append(
                f"held-out site '{name}': nobody trains {', '.join(untrained)}, so it is not tested"
            )
    sentences += [
        f"site '{site.name}' takes part from round {site.first_round} on"
        for site in study.site
        if site.first_round > 1
    ]
    if every := study.aggregation.cosines_every:
        sentences.append(
            "the coordinator computes the cosines between the sites' updates, by parameter group, "
            f"{how_often(every)}; they stand in the run folder and the report"
        )
    sentences += method.notes(study.training.optimizer)
    sentences += guard_words(study)
    if counts and study.training.batch_size == 1 and not study.parity:
        sentences.append(
            "batch norm with training.batch_size = 1 acts as instance norm while training"
        )
    return tuple(sentences)


def guard_words(study: Study) -> tuple[str, ...]:
    """Say what the study's guards do to each update before it leaves a site."""
    guards = study.build_method().guards.steps
    return tuple(guard.told(len(study.trainers)) for guard in guards)


def advice_on_groups(study: Study) -> str:
    """Say how many groups of a relay to try where sites train side by side; empty elsewhere."""
    method, topology, sites = study.build_method(), study.build_topology(), len(study.trainers)
    row = topology.in_a_row(sites)
    may_take_turns = method.sharing().federates and "side by side" not in method.needs()
    if not may_take_turns or not isinstance(topology, Star | Relay) or row == sites:
        return ""
    return (
        f'topology.kind = "relay" with topology.groups = {sites} gives the model the steps of all '
        f"{sites} sites in a row, for the same bytes and {sites // row} times the wall-clock; with "
        "4, 8 and 16 simulated sites more groups scored better"
    )


def how_often(rounds: int) -> str:
    """Say how often something happens that happens every so many rounds."""
    return "in each round" if rounds == 1 else f"every {rounds} rounds"
