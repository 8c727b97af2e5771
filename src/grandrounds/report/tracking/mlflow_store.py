"""MLflow, as a database or a server, is a store; only this module imports mlflow."""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from grandrounds.report.tracking.points import EVERY_ROUND, TEST, Beginning, Logged, PointBatch

MOST_METRICS, MOST_WORDS = 1000, 100  # of one request to MLflow
# MLflow sends no statistics of a hospital's runs; a server that is gone must not delay a round.
CAREFUL = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
Item = TypeVar("Item")


@dataclass
class MLflow:
    """Runs in MLflow, in an experiment that has the study's name; a run's key is its id."""

    address: str
    _run: str = ""

    @cached_property
    def _client(self) -> MlflowClient:
        for name, value in CAREFUL.items():
            os.environ.setdefault(name, value)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        return MlflowClient(self.address)

    def begin(self, beginning: Beginning) -> str:
        """Make a run, or complete one whose making failed before, and return its key."""
        self._run = self._run or self._made(beginning)
        self._log_words(beginning.parameters, {})
        return self._run

    def _made(self, beginning: Beginning) -> str:
        found = self._client.get_experiment_by_name(beginning.name)
        experiment = (
            found.experiment_id if found else self._client.create_experiment(beginning.name)
        )
        run = self._client.create_run(
            experiment, _milliseconds(beginning.moment), dict(beginning.tags), beginning.title
        )
        return run.info.run_id

    def resume(self, key: str) -> Logged:
        """Open a run that was made before, and return what it holds."""
        self._run = key
        held = self._client.get_run(key).data.metrics
        self._client.update_run(key, "RUNNING")
        rounds = self._client.get_metric_history(key, EVERY_ROUND) if EVERY_ROUND in held else []
        return Logged(
            frozenset(point.step for point in rounds), any(name.startswith(TEST) for name in held)
        )

    def log(self, batch: PointBatch) -> None:
        """Add a batch: its tags, which may be set twice, before its points."""
        self._log_words({}, batch.tags)
        moment = _milliseconds(batch.moment)
        points = [
            Metric(_allowed(name), value, moment, batch.round)
            for name, value in batch.metrics.items()
        ]
        for some in _in_parts(points, MOST_METRICS):
            self._client.log_batch(self._run, metrics=some)

    def end(self, batch: PointBatch) -> None:
        """Log how the run ended."""
        self._log_words({}, batch.tags)
        self._client.set_terminated(self._run, batch.status, _milliseconds(batch.moment))

    def close(self) -> None:
        """Do nothing: MLflow has all that it was sent."""

    def _log_words(self, parameters: Mapping[str, str], tags: Mapping[str, str]) -> None:
        params = [Param(_allowed(name), word) for name, word in parameters.items()]
        for some in _in_parts(params, MOST_WORDS):
            self._client.log_batch(self._run, params=some)
        for some in _in_parts([RunTag(name, word) for name, word in tags.items()], MOST_WORDS):
            self._client.log_batch(self._run, tags=some)


def _allowed(name: str) -> str:
    """Return a name with only the characters that MLflow allows."""
    return re.sub(r"[^\w./: -]", "_", name.replace("->", "_to_"))


def _milliseconds(moment: float) -> int:
    return round(moment * 1000)


def _in_parts(items: Sequence[Item], most: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + most] for start in range(0, len(items), most))
