"""What sites can learn together is chosen from what lies at each of them: tasks, and the split."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import cast

from grandrounds.core.errors import BadSite, require
from grandrounds.data.availability import VARIABLES, needs
from grandrounds.data.cohort import SPLITS, split_patients
from grandrounds.data.elements import Fractions
from grandrounds.data.inventory import Inventory, shared_names
from grandrounds.data.session_files import MASKS
from grandrounds.runs.draft import Draft, Proposed, at_path, number_of
from grandrounds.study.file import Table

STRUCTURES = tuple(name.removesuffix("mask") for name in MASKS if name != "brainmask")
KNOWN_ORDER = ("T1w", "T2w", "PDw", "FLAIR")  # of contrasts that people know; others follow
SALTS = 50
FEWEST_PATIENTS = 2  # that a task needs at a site: one to train, one to test


def choose_tasks(
    draft: Draft, held: Sequence[Inventory], tasks: Sequence[str]
) -> dict[str, list[str]]:
    """Choose what is learned from what, and return each site's task labels. Raises `BadInput`."""
    for label in tasks:
        require(label.count("->") == 1, f"--task {label}: write it as SOURCE->TARGET")
    kinds = {each.kind for each in held}
    if len(kinds) > 1:
        found = ", ".join(f"{each.site} {each.kind}" for each in held)
        raise BadSite(f"the sites have data of several kinds ({found}); one study has one kind")
    require(
        len(tasks) < 2 or kinds == {"volumes"},
        f"--task {' and '.join(tasks)}: images and tables have one label; give one task",
    )
    match held[0].kind:
        case "table":
            return _of_tables(draft, held, tasks)
        case "images":
            return _of_images(draft, held, tasks)
        case _:
            return _of_volumes(draft, held, tasks)


def _of_tables(
    draft: Draft, held: Sequence[Inventory], tasks: Sequence[str]
) -> dict[str, list[str]]:
    columns = _asked_of(draft, "elements.variables", _shared_variables(draft, held))
    target = _target(tasks) or (columns[-1] if columns else "")
    if len(columns) < 2 or target not in columns:
        raise BadSite(
            f"the tables have in common the columns of numbers {', '.join(columns) or 'none'}; a "
            f"study needs a target{f' ({target})' if target else ''} and one input or more"
        )
    patients = ", ".join(f"{each.site} {len(each.known(target))}" for each in held)
    draft.choose(
        "task.kind",
        "tabular",
        f"every site has a table; {target} is predicted, the last column that all have, known of "
        f"so many patients: {patients}"
        if not tasks
        else f"asked for: {tasks[0]}",
    )
    draft.choose(
        "elements.variables", columns, f"the {len(columns)} columns of numbers that all sites have"
    )
    values = [value for each in held for value in each.known(target)]
    lowest = min(values, default=0.0)
    threshold = lowest if len(set(values)) == 2 or lowest == 0 else float(median(values))
    share = sum(value > threshold for value in values) / max(len(values), 1)
    draft.choose(
        "task.threshold",
        float(threshold),
        f"{target} is above it in {share:.0%} of all patients",
    )
    return {each.site: [f"{VARIABLES}->{target}"] for each in held}


def _of_images(
    draft: Draft, held: Sequence[Inventory], tasks: Sequence[str]
) -> dict[str, list[str]]:
    shared = _asked_of(draft, "elements.variables", _shared_variables(draft, held))
    columns = [name for name in shared if all(each.is_binary(name) for each in held)]
    sources = tasks[0].partition("->")[0].split("+") if tasks else ["image"]
    contrasts = draft.choose(
        "elements.contrasts", sources, "an image stack does not say what its images show"
    )
    rarer = {n: min(_classes(each.known(n)) for each in held) for n in columns}
    target = _target(tasks) or max(rarer, key=lambda name: rarer[name], default="")
    if target not in columns:
        raise BadSite(
            f"no array of labels {f'{target} ' if target else ''}that is 0 and 1 at every site "
            "stands beside the images; a study of images learns to tell such a label"
        )
    counts = ", ".join(
        f"{each.site} {sum(v == 1 for v in each.known(target))} of {len(each.known(target))}"
        for each in held
    )
    draft.choose(
        "task.kind",
        "classification",
        f"every site has images with a label; {target} is 1 for so many patients: {counts}",
    )
    draft.choose("elements.variables", [target], "the label that is learned")
    return {each.site: [f"{contrasts[0]}->{target}"] for each in held}


def _classes(values: Sequence[float]) -> int:
    """Return how many values the rarer of two classes has."""
    ones = sum(value == 1 for value in values)
    return min(ones, len(values) - ones)


def _shared_variables(draft: Draft, held: Sequence[Inventory]) -> list[str]:
    common = [name for name in held[0].values if all(name in each.values for each in held)]
    others = {n: [e.site for e in held if n in e.values] for each in held for n in each.values}
    draft.notes += [
        f"{name} is left out: only {', '.join(sites)} {'have' if len(sites) > 1 else 'has'} it"
        for name, sites in others.items()
        if name not in common
    ]
    return common


def _asked_of(draft: Draft, key: str, common: Sequence[str]) -> list[str]:
    """Return those of the common names that are asked for; all where nothing is."""
    asked: object = at_path(draft.asked, key)
    if not isinstance(asked, list):
        return list(common)
    names = [str(name) for name in cast(list[object], asked)]
    for name in names:
        require(
            name in common,
            f"--set {key}: not every site has {name}; all have {', '.join(common) or 'none'}",
        )
    return names


def _target(tasks: Sequence[str]) -> str:
    return tasks[0].partition("->")[2].strip() if tasks else ""


def _of_volumes(
    draft: Draft, held: Sequence[Inventory], tasks: Sequence[str]
) -> dict[str, list[str]]:
    common, others = shared_names(held)
    contrasts = sorted((n for n in common if not _is_mask(n)), key=_known_order)
    contrasts = _asked_of(draft, "elements.contrasts", contrasts)
    draft.notes += [
        f"{'masks of ' if _is_mask(n) else ''}{n} left out: only "
        f"{', '.join(sites)} {'have' if len(sites) > 1 else 'has'} such files"
        for n, sites in others.items()
        if n != "brain"
    ]
    if not contrasts:
        raise BadSite("no contrast lies at every site, so there is nothing to learn together")
    if tasks:
        labels = _asked_labels(held, tasks)
        draft.choose("task.kind", _kind_of(tasks[0], common), f"asked for: {', '.join(tasks)}")
    else:
        labels = _labels(draft, held, contrasts, common)
    used = {name for found in labels.values() for label in found for name in needs(label)}
    kept = [name for name in contrasts if name in used]
    draft.notes += [f"{n} is left out: no task needs it" for n in contrasts if n not in used]
    counts = "; ".join(
        f"{each.site} " + ", ".join(f"{len(each.having([n]))} {n}" for n in kept) for each in held
    )
    draft.choose("elements.contrasts", kept, f"what all sites have, by patients: {counts}")
    variables = [name for name in used if name in held[0].values]
    if variables:
        draft.choose("elements.variables", variables, "the label that is learned")
    return labels


def _kind_of(label: str, common: Sequence[str]) -> str:
    targets = needs(label.partition("->")[2])
    if any(target in STRUCTURES for target in targets):
        return "segmentation"
    return "synthesis" if targets[0] in common else "classification"


def _is_mask(name: str) -> bool:
    return f"{name}mask" in MASKS


def _known_order(name: str) -> tuple[int, str]:
    return (KNOWN_ORDER.index(name) if name in KNOWN_ORDER else len(KNOWN_ORDER), name)


def _asked_labels(held: Sequence[Inventory], tasks: Sequence[str]) -> dict[str, list[str]]:
    """Give each site those of the tasks asked for that enough of its patients can serve."""
    found = {
        each.site: [t for t in tasks if len(each.having(needs(t))) >= FEWEST_PATIENTS]
        for each in held
    }
    for site, labels in found.items():
        require(
            bool(labels),
            f"--task {', '.join(tasks)}: site '{site}' has fewer than {FEWEST_PATIENTS} patients "
            "with all that it needs",
        )
    return found


def _labels(
    draft: Draft, held: Sequence[Inventory], contrasts: Sequence[str], common: Sequence[str]
) -> dict[str, list[str]]:
    """Choose the first that all can do: outline a structure, make a contrast, tell a label."""
    wanted = at_path(draft.asked, "task.kind")
    makers: dict[str, Callable[[], tuple[dict[str, list[str]], str]]] = {
        "segmentation": lambda: _outlining(held, contrasts, common),
        "synthesis": lambda: _making(held, contrasts),
        "classification": lambda: _telling(held, contrasts),
    }
    for kind, make in makers.items():
        labels, why = make()
        if all(labels.get(each.site) for each in held) and wanted in (None, kind):
            draft.choose("task.kind", kind, why)
            return labels
    raise BadSite(
        f"the sites cannot learn {wanted or 'anything'} together: at every site "
        f"{FEWEST_PATIENTS} patients or more need masks of one structure, two contrasts, or a "
        "variable that is 0 or 1, "
        f"beside {', '.join(contrasts)}"
    )


def _outlining(
    held: Sequence[Inventory], contrasts: Sequence[str], common: Sequence[str]
) -> tuple[dict[str, list[str]], str]:
    """Segment the structures of which all sites have masks, on as many contrasts as all can."""
    structures = [name for name in STRUCTURES if name in common]
    for number in range(len(contrasts), 0, -1):
        by_patients = sorted(contrasts, key=lambda n: -min(len(e.having([n])) for e in held))
        sources = sorted(by_patients[:number], key=_known_order)
        having = {each.site: each.having([*sources, *structures]) for each in held}
        if structures and all(len(patients) >= FEWEST_PATIENTS for patients in having.values()):
            counts = ", ".join(f"{site} of {len(p)} patients" for site, p in having.items())
            label = f"{'+'.join(sources)}->{'+'.join(structures)}"
            return {site: [label] for site in having}, (
                f"every site has masks of {' and '.join(structures)} with {', '.join(sources)}: "
                f"{counts}"
            )
    return {}, ""


def _making(
    held: Sequence[Inventory], contrasts: Sequence[str]
) -> tuple[dict[str, list[str]], str]:
    """Make each contrast from the one that most patients have, where a site has enough of both."""
    counts = {n: sum(len(each.having([n])) for each in held) for n in contrasts}
    source = max(contrasts, key=lambda name: counts[name])
    labels = {
        each.site: [
            f"{source}->{target}"
            for target in contrasts
            if target != source and len(each.having([source, target])) >= FEWEST_PATIENTS
        ]
        for each in held
    }
    everyone = sum(len(each.patients) for each in held)
    return labels, (
        f"every site has {number_of(len(contrasts), 'contrast')}: the others are made from "
        f"{source}, which {counts[source]} of {everyone} patients have"
    )


def _telling(
    held: Sequence[Inventory], contrasts: Sequence[str]
) -> tuple[dict[str, list[str]], str]:
    """Tell a variable of the patient that is 0 or 1, from one contrast."""
    names = [n for n in held[0].values if all(n in e.values and e.is_binary(n) for e in held)]
    for name in names:
        labels = {
            each.site: [f"{contrasts[0]}->{name}"]
            for each in held
            if len(each.having([contrasts[0], name])) >= FEWEST_PATIENTS
        }
        if len(labels) == len(held):
            return labels, f"every site's table has {name}, which is 0 or 1, beside {contrasts[0]}"
    return {}, ""


def choose_split(draft: Draft, held: Sequence[Inventory], labels: Mapping[str, list[str]]) -> None:
    """Choose fractions, and the first deal of patients in which every split can serve its tasks."""
    fewest = min(len(each.patients) for each in held)
    usual, small = Fractions(), Fractions(0.6, 0.2, 0.2)
    asked = at_path(draft.asked, "elements.split")
    wanted: Table = cast(Table, asked) if isinstance(asked, dict) else {}
    fractions = replace(usual if fewest >= 10 else small, **wanted)
    salts = [fractions.salt, *(f"{fractions.salt}{n}" for n in range(1, SALTS + 1))]
    lacks = {salt: _lacking(held, labels, replace(fractions, salt=salt)) for salt in salts}
    chosen = min(salts, key=lambda salt: lacks[salt])  # of equals the first
    if lacks[chosen][0]:
        raise BadSite(
            f"in none of {SALTS} deals every site has a patient to train and one to test for each "
            "of its tasks; give fewer tasks (--task), or sites with more patients"
        )
    share = f"{fractions.train:g}, {fractions.validation:g} and {fractions.test:g}"
    why = f"the smallest site has {number_of(fewest, 'patient')}: {share} train, validate and test"
    if chosen != fractions.salt:
        why += "; the salt deals anew, as else a split would lack a contrast that a task needs"
    value = {"train": fractions.train, "validation": fractions.validation, "test": fractions.test}
    value |= {"salt": chosen} if chosen else {}
    draft.choices.append(Proposed("elements.split", value, why))


def _lacking(
    held: Sequence[Inventory], labels: Mapping[str, list[str]], fractions: Fractions
) -> tuple[int, int]:
    """Count tasks without a patient to train or to test, and those without one to validate."""
    missing = dict.fromkeys(SPLITS, 0)
    for each in held:
        used = {name for label in labels[each.site] for name in needs(label)} - {VARIABLES}
        with_some = [p for p in each.patients if each.kind != "volumes" or _has_any(each, p, used)]
        dealt = split_patients(with_some, fractions, site=each.site)
        for label in labels[each.site]:
            names = [n for n in needs(label) if n != VARIABLES]
            names = [n for n in names if each.kind == "volumes" or n in each.values]
            serving = {dealt[patient] for patient in each.having(names) if patient in dealt}
            for split in SPLITS:
                missing[split] += split not in serving
    return missing["train"] + missing["test"], missing["validation"]


def _has_any(each: Inventory, patient: str, names: set[str]) -> bool:
    return any(s.patient == patient and s.names & names for s in each.sessions)
