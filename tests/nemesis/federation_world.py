"""A run of a provisioned NVFlare federation, in whose jobs processes come to harm."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.flare_federation import JOBS, Town
from tests.nemesis import harm
from tests.nemesis.faults import SERVER, Fault, Schedule
from tests.nemesis.story import Watcher
from tests.nemesis.studies import study_of

IN_JOBS = f"any(word.endswith({JOBS!r}) for word in sys.orig_argv)"


@dataclass
class FederationWorld:
    """One study in a federation that plays one after the other."""

    schedule: Schedule
    folder: Path
    town: Town
    folders: Mapping[str, Path] = field(init=False)

    def __post_init__(self) -> None:
        self._study = study_of(self.schedule.arm)
        parties = (SERVER, *self._study.trainers)
        self.folders = {party: self.town.run(self._study, party) for party in parties}
        self.folder.mkdir(parents=True)
        for folder in self.folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        self._watcher = Watcher(self.schedule.harms, self.folder)
        self._watcher.__enter__()

    def close(self) -> None:
        self._watcher.__exit__()

    def struck(self) -> Sequence[Fault]:
        return self._watcher.struck()

    def counted(self) -> Sequence[Mapping[str, object]]:
        return ()

    def attempt(self, *, resume: bool) -> tuple[int, str]:
        """Submit or resume, and wait for the end; harmed processes are started anew after it."""
        harms = () if resume else self.schedule.harms
        for party in {each.party for each in harms}:
            own = [each for each in harms if each.party == party]
            custom = harm.write_custom(self.folder / party, own, self.folder, IN_JOBS)
            self.town.kill(party)
            self.town.start(party, harm=custom)
        done = self.town.submit(self._study, resume=resume)
        if done.code:
            self.town.kill(*self.folders)
            self.town.start(*self.folders)
        else:
            for party in {each.party for each in harms}:
                self.town.kill(party)
                self.town.start(party)
        return done.code, done.err
