"""A study is proposed from what lies at its sites; each choice says why, with the numbers found.

The sites' data are prepared and checked as `check` does, so that what is proposed can be run.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from statistics import median
from typing import Any

import torch

from grandrounds.algorithms import proposed_method
from grandrounds.core.device import choose_device, physical_memory
from grandrounds.core.errors import require
from grandrounds.data.inventory import Inventory, take_inventory
from grandrounds.runs.costs import estimate, plan_run
from grandrounds.runs.draft import Draft, Proposal, at_path, number_of
from grandrounds.runs.learnable import choose_split, choose_tasks
from grandrounds.runs.site_data import Preparing, check_joins, nobody_told, open_site
from grandrounds.study.file import Table, apply_override, parse_study
from grandrounds.study.site_file import SiteFile
from grandrounds.study.study import SiteSpec, Study

MULTIPLE, LEAST_SIZE = 16, 32  # of a slice's sides, for all networks of the house
LARGEST_BATCH = 16
MEMORY_SHARE = 0.5  # of this machine's memory that a study may be estimated to need
COARSER = 1.25
START_ROUNDS = 30
RATES = {"small": 1e-3, "large": 2e-4}


def propose(
    name: str,
    files: Sequence[SiteFile],
    *,
    overrides: Sequence[str] = (),
    tasks: Sequence[str] = (),
    preparing: Preparing = nobody_told,
) -> Proposal:
    """Propose a study for these sites; `overrides` and `tasks` are what is asked for.

    Raises `BadInput` where the sites have nothing in common to learn from, or where the proposal
    would be refused at one of them.
    """
    asked: Table = {}
    for override in overrides:
        apply_override(asked, override)
    require("site" not in asked, "--set site: the sites are those of --site; give tasks by --task")
    draft = Draft(asked)
    held = [take_inventory(file.name, file.data) for file in files]
    labels = choose_tasks(draft, held, tasks)
    choose_split(draft, held, labels)
    _network(draft, held)
    specs = [SiteSpec(site, tuple(found)) for site, found in labels.items()]
    study = _fitting(draft, name, specs, overrides, held)
    study = _with_batch(draft, study, files, overrides, preparing)
    return Proposal(study, draft.with_others(overrides), tuple(draft.notes))


def _network(draft: Draft, held: Sequence[Inventory]) -> None:
    """Choose the grid, the network's size and how it is trained."""
    kind = draft.value("task.kind")
    if held[0].kind == "volumes":
        _grid(draft, held)
    elif held[0].kind == "images":
        _image_size(draft, held)
    device = choose_device(at_path(draft.asked, "training.device") or "auto")
    small = device.type == "cpu"
    if kind in ("synthesis", "segmentation"):
        here = "no accelerator is here" if small else f"{_named(device)} is here"
        full = "full" if kind == "synthesis" else "unet"
        draft.choose("task.model", "small" if small else full, here)
    why = "there is one site" if len(held) == 1 else f"{len(held)} sites learn one model"
    draft.choose("method.kind", *proposed_method(len(held), kind, why))
    draft.choose(
        "rounds", START_ROUNDS, "a start; the round that validates best is the one that counts"
    )


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _grid(draft: Draft, held: Sequence[Inventory]) -> None:
    found = "; ".join(f"{e.site} {e.spacing[0]:.3g} x {e.spacing[1]:.3g}" for e in held)
    middle = [round(float(median(each.spacing[axis] for each in held)), 2) for axis in (0, 1)]
    spacing = draft.choose(
        "elements.spacing", middle, f"mm, the median of what the sites have (their own: {found})"
    )
    _size(draft, held, spacing)


def _size(draft: Draft, held: Sequence[Inventory], spacing: Sequence[float]) -> None:
    window = [max(each.window[axis] for each in held) for axis in (0, 1)]
    pixels = [_rounded(length / mm) for length, mm in zip(window, spacing, strict=True)]
    draft.choose(
        "elements.size",
        pixels,
        f"{window[0]:.0f} x {window[1]:.0f} mm hold the brain of every patient; a multiple of "
        f"{MULTIPLE}, as the networks need",
    )


def _rounded(pixels: float) -> int:
    return max(LEAST_SIZE, MULTIPLE * ceil(round(pixels, 3) / MULTIPLE))


def _image_size(draft: Draft, held: Sequence[Inventory]) -> None:
    pixels = [int(max(each.window[axis] for each in held)) for axis in (0, 1)]
    blocks = next((n for n in (3, 2, 1) if min(pixels) >= 2 ** (n + 1) + 1), 1)
    draft.choose("elements.size", pixels, "pixels, the largest image of any site")
    draft.choose("task.blocks", blocks, f"images of {pixels[0]} pixels can be halved so often")


def _fitting(
    draft: Draft,
    name: str,
    specs: Sequence[SiteSpec],
    overrides: Sequence[str],
    held: Sequence[Inventory],
) -> Study:
    """Return the study so far; a grid that no batch fits on is made coarser until one does."""
    for choice in _training(draft):
        draft.choose(*choice)
    draft.choose("training.batch_size", 1, "")
    while True:
        study = parse_study(draft.table(name, specs), overrides)
        need, have = _memory(study)
        if need <= have or held[0].kind != "volumes" or _fixed(draft):
            return study
        spacing = [round(mm * COARSER, 2) for mm in study.elements.spacing]
        draft.choose(
            "elements.spacing",
            spacing,
            f"mm, coarser than the {study.elements.spacing[0]:g} mm at which one slice needs "
            f"{need / 2**30:.1f} GiB, more than {MEMORY_SHARE:.0%} of what this machine has",
        )
        _size(draft, held, spacing)


def _fixed(draft: Draft) -> bool:
    """Tell whether the grid is asked for, and so is not ours to make coarser."""
    return any(at_path(draft.asked, f"elements.{key}") for key in ("spacing", "size"))


def _training(draft: Draft) -> list[tuple[str, Any, str]]:
    small = draft.value("task.model") in (None, "small")
    size = "small" if small else "large"
    why = f"what a {size} network of the house trains well with"
    return [("training.learning_rate", RATES[size], why)]


def _memory(study: Study) -> tuple[float, float]:
    """Return the bytes that a study needs here, and those that it may have."""
    device, cost = choose_device(study.training.device), estimate(plan_run(study))
    if device.type == "cuda":
        have = torch.cuda.mem_get_info(device)[1]
        return cost.weights + cost.activations, MEMORY_SHARE * have
    return cost.memory, MEMORY_SHARE * physical_memory()


def _with_batch(
    draft: Draft,
    study: Study,
    files: Sequence[SiteFile],
    overrides: Sequence[str],
    preparing: Preparing,
) -> Study:
    """Choose the batch by the sites' examples and this machine's memory, and check every site."""
    opened = [
        open_site(study, spec, file, preparing)
        for spec, file in zip(study.site, files, strict=True)
    ]
    counts = [summary.splits["train"].slices for _, summary in opened]
    batch = LARGEST_BATCH
    while batch > 1 and (batch > min(counts) or not _fits(study, batch)):
        batch //= 2
    need, _ = _memory(_of_batch(study, batch))
    draft.choose(
        "training.batch_size",
        batch,
        f"it needs about {need / 2**30:.1f} GiB; the smallest site trains on "
        f"{number_of(min(counts), 'example')}",
    )
    machine = study.machine()
    draft.choose(
        "training.precision",
        "auto",
        f"here {machine.precision_name}, on {machine.device.type}; each machine takes the fastest "
        "that it can rely on",
    )
    final = parse_study(draft.table(study.name, study.site), overrides)
    for cohort, summary in opened:
        check_joins(final, cohort, summary)
    return final


def _fits(study: Study, batch: int) -> bool:
    need, have = _memory(_of_batch(study, batch))
    return need <= have


def _of_batch(study: Study, batch: int) -> Study:
    return replace(study, training=replace(study.training, batch_size=batch))
