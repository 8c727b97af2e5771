"""The tiny study for every task that can be simulated, so that a theorem is shown for all."""

from copy import deepcopy
from dataclasses import replace

from grandrounds.study.file import Table, parse_study, read_table
from grandrounds.study.study import Study
from tests.helpers.federation import TINY

SITE_TASKS = {
    "synthesis": None,  # the tiny study's own
    "segmentation": ["T1w->csf+grey+white"],
    "classification": ["FLAIR->lesion"],
}
SMALL: dict[str, Table] = {
    "segmentation": {"kind": "segmentation", "channels": [4, 8], "flip": 0.0},
    "classification": {"kind": "classification", "width": 4, "blocks": 2, "flip": 0.0},
}
KINDS = tuple(SITE_TASKS)


def tiny_of(kind: str, *overrides: str, sites: int = 4) -> Study:
    """The tiny study, with another task in place of synthesis."""
    table = deepcopy(read_table(TINY))
    labels = SITE_TASKS[kind]
    if labels:
        table["task"] = SMALL[kind]
        table["method"] = {"kind": "fedavg"}
        for site in table["site"]:
            site["tasks"] = labels
    study = parse_study(table, overrides, source=kind)
    return replace(study, site=study.site[:sites])
