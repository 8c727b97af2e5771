"""TensorBoard, as event files in a folder, is a store; only this module imports tensorboard."""

# tensorboard comes without types, and its records are classes that protobuf makes at run time.
# pyright: reportMissingTypeStubs=false, reportAttributeAccessIssue=false
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from grandrounds.core.errors import BadFolder
from grandrounds.core.quoting import for_markdown
from grandrounds.report.tracking.points import EVERY_ROUND, TEST, Beginning, Logged, PointBatch

EVERYTHING = {"scalars": 0, "tensors": 0}  # a reader samples the points unless these are 0


@dataclass
class TensorBoard:
    """Runs below a folder, as STUDY/ARM/seed-N; that path is a run's key.

    A batch is one record of an event file, so that a killed process leaves all of it or nothing.
    """

    folder: Path
    _key: str = ""

    @cached_property
    def _writer(self) -> EventFileWriter:
        return EventFileWriter(str(self.folder / self._key))

    def begin(self, beginning: Beginning) -> str:
        """Choose a new folder, write the parameters as a table, and return the run's key."""
        self._key = self._free(beginning)
        words = _words(beginning).items()
        rows = [f"| {for_markdown(name)} | {for_markdown(word)} |" for name, word in words]
        table = "\n".join(["| parameter | value |", "|---|---|", *rows])
        self._write(0, beginning.moment, Summary(), {"parameters": table})
        return self._key

    def _free(self, beginning: Beginning) -> str:
        name = beginning.tags.get("comparison", beginning.name)
        wanted = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).lstrip('.')}/{beginning.title}"
        number, key = 1, wanted
        while (self.folder / key).exists():
            number += 1
            key = f"{wanted}-{number}"
        return key

    def resume(self, key: str) -> Logged:
        """Open a run that was made before, and return what its files hold. Raises `BadFolder`."""
        if not (self.folder / key).resolve().is_relative_to(self.folder.resolve()):
            raise BadFolder(f"{key}: is no run of the tracker {self.folder}; its keys have no '..'")
        self._key = key
        found = EventAccumulator(str(self.folder / key), EVERYTHING)
        found.Reload()
        scalars, texts = found.Tags()["scalars"], found.Tags()["tensors"]
        rounds = found.Scalars(EVERY_ROUND) if EVERY_ROUND in scalars else []
        return Logged(
            frozenset(point.step for point in rounds),
            any(name.startswith(TEST) for name in scalars),
            _last_status(found) if "status" in texts else "RUNNING",
        )

    def log(self, batch: PointBatch) -> None:
        """Add a batch as one record."""
        points = [Summary.Value(tag=n, simple_value=value) for n, value in batch.metrics.items()]
        texts = {name: word for name, word in batch.tags.items() if not name.startswith("digest.")}
        self._write(batch.round, batch.moment, Summary(value=points), texts)

    def end(self, batch: PointBatch) -> None:
        """Log how the run ended."""
        failed = {name: word for name, word in batch.tags.items() if name == "failed"}
        self._write(batch.round, batch.moment, Summary(), {"status": str(batch.status), **failed})

    def close(self) -> None:
        """Do nothing: each record was flushed."""

    def _write(self, round: int, moment: float, summary: Summary, texts: Mapping[str, str]) -> None:
        for name, word in texts.items():
            summary.MergeFrom(text_pb(name, word))
        self._writer.add_event(Event(wall_time=moment, step=round, summary=summary))
        self._writer.flush()


def _words(beginning: Beginning) -> dict[str, str]:
    return {**beginning.tags, **beginning.parameters}


def _last_status(found: EventAccumulator) -> str:
    return found.Tensors("status")[-1].tensor_proto.string_val[0].decode()
