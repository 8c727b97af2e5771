"""An arm of a comparison: a method, over a topology, and what else differs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from grandrounds.errors import BadStudy
from grandrounds.methods import METHODS
from grandrounds.study import Study
from grandrounds.study_file import Table, parse_study
from grandrounds.tasks import Synthesis


@dataclass(frozen=True)
class Arm:
    """One arm: a method, a topology if not the study's own, and what else differs.

    It is written `METHOD[@TOPOLOGY][:KEY=VALUE[:KEY=VALUE]]`. A key without a dot is an option of
    the method; one with a dot is a path in the study.
    """

    label: str

    @property
    def kind(self) -> str:
        """Name the method."""
        return self.label.partition(":")[0].partition("@")[0]

    @property
    def topology(self) -> str:
        """Name the topology, if the arm does."""
        return self.label.partition(":")[0].partition("@")[2]

    @property
    def name(self) -> str:
        """Give the name that the arm has in tables and folders."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.label).strip("-")

    @property
    def overrides(self) -> tuple[str, ...]:
        """List what differs, as `key=value`."""
        pairs = self.label.split(":")[1:]
        return tuple(pair if "." in pair.partition("=")[0] else f"method.{pair}" for pair in pairs)

    def title(self, study: Study) -> str:
        """Write the arm's name for people."""
        title = study.build_method().title
        differing = [_said(pair) for pair in self.overrides]
        if self.topology:
            title = f"{title} over {self.topology}"
        if study.method.kind == "local" and isinstance(study.task, Synthesis):
            differing = [f"{study.task.generator} network"]
        return f"{title} ({', '.join(differing)})" if differing else title

    def study(self, table: Table, overrides: Sequence[str]) -> Study:
        """Make the arm's study from the comparison's. Raises `BadStudy`."""
        if self.kind not in METHODS:
            raise BadStudy(
                f"arm '{self.label}': no method '{self.kind}'; known: {', '.join(METHODS)}"
            )
        own = {**table, "method": {"kind": self.kind}, "arm": self.name}
        if self.topology:
            own["topology"] = {"kind": self.topology}
        return parse_study(own, (*overrides, *self.overrides), source=f"arm '{self.label}'")


def arms_of(labels: Sequence[str]) -> tuple[Arm, ...]:
    """Read arms, each different from the others. Raises `BadStudy`."""
    arms = tuple(Arm(label.strip()) for label in labels if label.strip())
    if not arms:
        raise BadStudy("a comparison needs one arm or more, for example --arms pflsynth,fedavg")
    names = [arm.name for arm in arms]
    for arm in arms:
        if names.count(arm.name) > 1:
            raise BadStudy(
                f"arm '{arm.label}' is given {names.count(arm.name)} times; give it once"
            )
    return arms


def _said(pair: str) -> str:
    """Say a difference for people: a word by itself, a number or a switch with its name."""
    key, _, value = pair.partition("=")
    if re.fullmatch(r"[a-z][a-z0-9-]*", value) and value not in ("true", "false"):
        return value
    return f"{key.rpartition('.')[2]} {value}".replace("_", " ")
