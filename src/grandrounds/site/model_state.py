"""A site loads its model from shared and private weights, and saves them on its own disk."""

import json
import logging
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from grandrounds.algorithms.method import broadcast
from grandrounds.algorithms.sharing import FIXED_GROUP
from grandrounds.core.errors import BadFolder
from grandrounds.core.files import append_line, make_private_folder, write_bytes
from grandrounds.core.messages import Evaluate, Train, Tune
from grandrounds.core.run_folder import SiteFolder
from grandrounds.core.state import (
    RoundStore,
    State,
    load_state,
    read_sealed,
    save_state,
    saved_rounds,
    write_sealed,
)
from grandrounds.core.weights import OPTIMIZER, Filter, Weights, name_in, select, without_prefix
from grandrounds.data.profile import DataProfile, save_profile
from grandrounds.models.layers import modules_by_name
from grandrounds.site.setup import SiteSetup
from grandrounds.site.training import Trainer

PERSONAL = "personal/"
_DATA = "data"  # a note: the digest of the site's data
_log = logging.getLogger(__name__)  # of the site
MEMORY = "memory/"  # before the names of what the task remembers from its training


@dataclass(frozen=True)
class SiteStore:
    """The rounds that a site can continue from, in its own folder, which others cannot open."""

    folder: Path

    @property
    def private(self) -> RoundStore:
        """Return the rounds of private state: weights, optimiser state, control variates."""
        return RoundStore(self._files.state, private=True)

    @property
    def _files(self) -> SiteFolder:
        return SiteFolder(self.folder)

    def rounds(self) -> tuple[int, ...]:
        """List the rounds that are complete on this disk."""
        merged = saved_rounds(self._files.merged).rounds()
        return tuple(r for r in self.private.rounds() if not merged or r in merged)

    def intact_rounds(self) -> tuple[int, ...]:
        """List the complete rounds that are what was saved; the site's log names the others."""
        return tuple(round for round in self.rounds() if self._is_intact(round))

    def _is_intact(self, round: int) -> bool:
        try:
            self.private.load(round)
            if self.has_merged(round):
                self.merged(round)
        except BadFolder as damage:
            _log.warning("%s", damage)
            return False
        return True

    def data_of(self, round: int) -> str:
        """Return the digest of the data that a saved round was trained on; empty if unknown."""
        return self.private.load(round)[1].get(_DATA, "")

    def save_private(
        self, round: int, private: Weights, digest: str, keep: set[int], *, data: str = ""
    ) -> None:
        """Save a round's private state, whose digest is this one. Raises `DiskFailed`.

        The coordinator is a round behind until it has saved this one, too, and may have to go back
        by one more: hence the two rounds before this one stay.
        """
        make_private_folder(self.folder)
        kept = keep | _two_before(self.private, round)
        self.private.save(round, private, {_DATA: data}, kept, {"": digest})

    def save_merged(self, state: State) -> None:
        """Save a merged model with its server state. Raises `DiskFailed`."""
        make_private_folder(self.folder)
        make_private_folder(self._files.merged)
        older = _two_before(saved_rounds(self._files.merged), state.round)
        save_state(self._files.merged, state, keep=older, private=True)

    def has_merged(self, round: int) -> bool:
        """Tell whether a leader's merged model of a round is saved here."""
        return saved_rounds(self._files.merged).path(round).exists()

    def merged(self, round: int) -> State:
        """Load the merged model of a round. Raises `BadFolder`."""
        return load_state(self._files.merged, round)

    def write_model(self, name: str, round: int, private: Weights) -> None:
        """Write the private part of a round's model, and the merged model if it is saved here."""
        notes = {"site": self.folder.name, "round": str(round)}
        write_sealed(self._files.private(name), private, notes, private=True)
        if self.has_merged(round):
            merged = self.merged(round).weights
            write_sealed(self._files.shared(name), merged, notes, private=True)

    def write_protocols(self, text: str) -> None:
        """Write how the site usually scans, for when its model is used. Raises `DiskFailed`."""
        write_bytes(self._files.protocols, text.encode(), private=True)

    def save_profile(self, profile: DataProfile) -> None:
        """Save what the site's training images look like. Raises `DiskFailed`."""
        save_profile(self._files.profile, profile)

    def note_validation(self, round: int, scores: Mapping[tuple[str, str], float]) -> None:
        """Note a round's validation score of each (site, task)."""
        make_private_folder(self.folder)
        path = self._files.validation
        path.touch(0o600)
        for (site, task), score in scores.items():
            line = {"round": round, "site": site, "task": task, "score": score}
            append_line(path, json.dumps(line).encode())

    def save_tuned(self, weights: Weights) -> None:
        """Save the model that was fine-tuned for this site alone."""
        write_sealed(self._files.tuned, weights, private=True)

    def load_tuned(self) -> Weights:
        """Load the fine-tuned model. Raises `BadFolder`."""
        return read_sealed(self._files.tuned)[0]


@dataclass
class ReadAhead:
    """Private state of a round, read from the disk while another site computes.

    It is taken once, and only where the file still is the one that was read.
    """

    _read: tuple[Path, tuple[int, ...], Future[Weights]] | None = None

    def begin(self, store: RoundStore, round: int, disk: Executor) -> None:
        """Begin to read a round; where its file is missing, whoever needs it will say so."""
        path = store.path(round)
        if identity := _identity(path):
            self._read = path, identity, disk.submit(lambda: store.load(round)[0])

    def take(self, path: Path) -> Weights | None:
        """Return what was read of a file. Raises `BadFolder` where it is damaged."""
        read, self._read = self._read, None
        same = read is not None and read[:2] == (path, _identity(path))
        return read[2].result() if read is not None and same else None


def _identity(path: Path) -> tuple[int, ...]:
    """Return what changes when another file takes a file's place; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _two_before(store: RoundStore, round: int) -> set[int]:
    return set([saved for saved in store.rounds() if saved < round][-2:])


def model_tensors(private: Weights) -> Weights:
    """Return the model's tensors of private state."""
    return select(private, lambda name: "/" not in name)


def personal_tensors(private: Weights) -> Weights:
    """Return the personal model of private state, and its optimiser's state."""
    return without_prefix(PERSONAL, private)


def optimizer_tensors(private: Weights) -> Weights:
    """Return the tensors of the optimiser."""
    return select(private, lambda name: name.startswith(OPTIMIZER))


@dataclass(frozen=True)
class SiteModel:
    """One site's model, in a trainer that other sites of the process may share."""

    site: SiteSetup
    ahead: ReadAhead = field(default_factory=ReadAhead, compare=False)

    @property
    def trainer(self) -> Trainer:
        return self.site.trainer

    @property
    def store(self) -> SiteStore:
        return SiteStore(self.site.folder)

    def private_of(self, round: int) -> Weights:
        """Return the private state after a round; before the first it is the first weights."""
        if round == 0:
            return select(self.site.first_weights(), self.site.uses)
        store = self.store.private
        read = self.ahead.take(store.path(round))
        return store.load(round)[0] if read is None else read

    def merged(self, round: int) -> State:
        """Return the merged model of a round; before the first it is what all sites start from."""
        first = State(select(self.site.first_weights(), self.site.travels))
        return self.store.merged(round) if round and first.weights else first

    def incoming(self, request: Train | Evaluate | Tune) -> Weights:
        """Return the weights in a request, or the merged model that this site holds itself."""
        if request.weights:
            return request.weights
        return broadcast(self.site.method, self.merged(request.since), self.site.name)

    def load_for_training(self, tensors: Weights) -> None:
        """Load a model to train: its weights, and the optimiser's state unless rounds reset it."""
        self.trainer.load(model_tensors(tensors))
        keeps = not self.site.training.reset_optimizer
        self.trainer.load_optimizer_state(optimizer_tensors(tensors) if keeps else {})
        if self.site.training.norm_buffers == "reset":
            groups = self.site.task.groups(self.trainer.model)
            fixed = groups.get(FIXED_GROUP, name_in(frozenset()))
            _reset_running_statistics(self.trainer.model, fixed)

    def shared(self) -> Weights:
        """Return a copy of what leaves the site, with the optimiser's state if that travels."""
        travels = self.site.moments_travel
        moments = self.trainer.optimizer_state(self.site.travels) if travels else {}
        leaves = self.trainer.weights(lambda name: self.site.uses(name) and self.site.travels(name))
        return leaves | moments

    def private(self) -> Weights:
        """Return a copy of what stays: private weights, and the optimiser's state."""
        stays = self.trainer.weights(
            lambda name: self.site.uses(name) and not self.site.travels(name)
        )
        return stays | self.trainer.optimizer_state(self.site.uses)

    def all_weights(self) -> Weights:
        """Return a copy of the whole model of the site's tasks."""
        return self.trainer.weights(self.site.uses)

    def local_model(self, request: Evaluate | Tune) -> Weights:
        """Return the model that this site uses: private and shared part, or its personal model."""
        private = self.private_of(request.since)
        return model_tensors(
            private | self.incoming(request) | model_tensors(personal_tensors(private))
        )

    def write_models(self, rounds: dict[str, int]) -> None:
        """Write the private part of each round's model; file names end with these keys."""
        for name, round in rounds.items():
            private = self.private_of(round)
            staying = select(model_tensors(private), lambda n: not self.site.travels(n))
            self.store.write_model(name, round, staying | model_tensors(personal_tensors(private)))
        if self.site.protocols:
            self.store.write_protocols(self.site.protocols)


def _reset_running_statistics(model: nn.Module, fixed: Filter) -> None:
    for name, module in modules_by_name(model).items():
        counts = isinstance(module, nn.modules.batchnorm._BatchNorm)  # pyright: ignore[reportPrivateUsage]
        if counts and not fixed(f"{name}.running_mean"):
            module.reset_running_stats()
