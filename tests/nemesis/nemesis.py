"""Plays schedules, each in a folder of its own, and gives the checker's verdict."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from tests.helpers.flare_federation import Town, provisioned
from tests.nemesis.checker import verdict
from tests.nemesis.faults import SERVER, Schedule
from tests.nemesis.federation_world import FederationWorld
from tests.nemesis.remote_world import Kits, RemoteWorld, make_kits
from tests.nemesis.story import Story, play
from tests.nemesis.studies import ARMS, QuietRuns, study_of
from tests.nemesis.workers_world import WorkersWorld

AnyWorld: TypeAlias = RemoteWorld | WorkersWorld | FederationWorld


@dataclass
class Nemesis:
    """What schedules share: keys, and the quiet runs of their studies."""

    folder: Path
    quiet: QuietRuns = field(init=False)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.quiet = QuietRuns(self.folder / "quiet")

    @cached_property
    def town(self) -> Town:
        """Start a federation of a server and two sites."""
        arms = [arm for arm in ARMS if len(study_of(arm).site) == 2]
        folder = self.folder / "town"
        town = self._stack.enter_context(provisioned(study_of(arms[0]), folder))
        for arm in arms:
            town.accept(study_of(arm))
        town.start(SERVER, *study_of(arms[0]).trainers)
        return town

    @cached_property
    def kits(self) -> Kits:
        return make_kits(self.folder / "kits")

    def place_of(self, schedule: Schedule) -> Path:
        """Return the folder in which a schedule is played."""
        return self.folder / f"{schedule.world}-{schedule.seed}"

    def play(self, schedule: Schedule) -> Story:
        """Play a schedule; its folder stays for whoever wants to look."""
        folder = self.place_of(schedule)
        shutil.rmtree(folder, ignore_errors=True)
        with closing(self._world(schedule, folder)) as world:
            return play(schedule, world)

    def judge(self, schedule: Schedule) -> tuple[Story, list[str]]:
        """Play a schedule, and give its story and everything that is wrong with it."""
        story = self.play(schedule)
        return story, verdict(story, self.quiet)

    def _world(self, schedule: Schedule, folder: Path) -> AnyWorld:
        worlds: dict[str, Callable[[], AnyWorld]] = {
            "remote": lambda: RemoteWorld(schedule, folder, self.kits),
            "workers": lambda: WorkersWorld(schedule, folder),
            "federation": lambda: FederationWorld(schedule, folder, self.town),
        }
        return worlds[schedule.world]()

    def close(self) -> None:
        """End what schedules share."""
        self._stack.close()
