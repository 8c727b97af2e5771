"""What trackers get of a run, live and from its journal: each point once, whatever happened."""

import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grandrounds.core.errors import BadFolder, BadInput
from grandrounds.core.events import Event, Failed, RoundFinished, SiteTested, SiteTrained
from grandrounds.core.extras import install_command
from grandrounds.core.journal import Journal, read_journal, without_superseded
from grandrounds.report.tracking.tracker import (
    check_trackers,
    display_uri,
    flat_parameters,
    recorded,
    replay,
    runs_in,
    tracked,
)
from grandrounds.runs.loop import run_study as run
from grandrounds.study.file import example
from tests.helpers.command import inside, loaded_by
from tests.helpers.federation import rows, tiny
from tests.helpers.run_folders import FEDAVG, PFLSYNTH, run_folder, write_comparison, write_run

# MLflow's own models use what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
Points = dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow database, which takes seconds to make."""
    from mlflow import MlflowClient

    address = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/runs.db"
    MlflowClient(address).search_experiments()
    return address


@pytest.fixture
def closed_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def silent(sentence: str) -> None:
    pytest.fail(f"told: {sentence}")


def mlflow_run(address: str, key: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(address).get_run(key)


def mlflow_points(address: str, key: str) -> Points:
    """Every point that MLflow keeps of a run."""
    from mlflow import MlflowClient

    client = MlflowClient(address)
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(key, name)]
        for name in client.get_run(key).data.metrics
    }


def event_files(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def tensorboard_points(folder: Path) -> Points:
    """Every point that TensorBoard shows of a run."""
    found = event_files(folder)
    return {
        name: [(point.step, point.value) for point in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def texts(folder: Path, name: str) -> list[str]:
    found = event_files(folder)
    return [tensor.tensor_proto.string_val[0].decode() for tensor in found.Tensors(name)]


def told(folder: Path) -> list[Event]:
    return [event for _, event in without_superseded(read_journal(folder / "journal.jsonl"))]


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_place_without_double_points(
    tmp_path: Path, database: str
):
    """Stopped after round 2 was told and before it was saved, a run plays round 2 again."""
    study, folder = replace(tiny("rounds=3", sites=2), name="resumed"), tmp_path / "run"
    uris = [f"mlflow:{database}", f"tensorboard:{tmp_path / 'board'}"]

    def stop(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == 2:
            raise KeyboardInterrupt

    with tracked(folder, uris, silent) as trackers, pytest.raises(KeyboardInterrupt):
        run(study, folder, listeners=[*trackers, stop])
    first, key = recorded(folder), recorded(folder)[uris[0]]
    assert mlflow_run(database, key).info.status == "KILLED"
    assert texts(tmp_path / "board" / first[uris[1]], "status") == ["KILLED"]

    with tracked(folder, uris, silent) as trackers:
        run(study, folder, resume=True, listeners=trackers)
    assert recorded(folder) == first
    found, board = mlflow_run(database, key), tmp_path / "board" / first[uris[1]]
    assert found.info.status == "FINISHED"
    assert texts(board, "status") == ["KILLED", "FINISHED"]
    last = [event for event in told(folder) if isinstance(event, RoundFinished)][-1]
    assert found.data.tags["digest"] == found.data.tags["digest.3"] == last.digest
    assert texts(board, "digest")[-1] == last.digest
    for points in (mlflow_points(database, key), tensorboard_points(board)):
        _assert_complete(points, folder)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def _assert_complete(points: Points, folder: Path) -> None:
    """The points are those of the journal and of the tables, each once."""
    events = told(folder)
    scores = [(e.round, e.score) for e in events if isinstance(e, RoundFinished)]
    assert points["round/validation"] == [(n, pytest.approx(score)) for n, score in scores]
    for event in events:
        match event:
            case SiteTrained():
                loss = (event.round, pytest.approx(event.losses["generator"]))
                assert loss in points[f"loss/{event.site}/generator"]
            case SiteTested():
                for metric, value in event.summary.items():
                    found = points[f"test/{event.site}/{metric}"]
                    assert found == [(event.round, pytest.approx(value))]
            case _:
                pass
    for row in rows(folder / "rounds.csv"):
        for word in ("bytes_up", "bytes_down"):
            number, value = int(row["round"]), float(row[word])
            assert (number, value) in points[f"{word}/{row['site']}"]
    for name, found in points.items():
        steps = [step for step, _ in found]
        assert steps == sorted(set(steps)), f"{name} has a step twice: {steps}"
        assert name.startswith(("test/", "run/")) or steps == [1, 2, 3], name


@pytest.mark.slow
def test_a_comparison_s_journals_are_brought_to_mlflow_once(tmp_path: Path, database: str):
    folder = write_comparison(tmp_path / "compared", [PFLSYNTH, FEDAVG], seeds=(7, 8))
    uri = f"mlflow:{database}"
    for _ in range(2):
        assert all(replay(run, uri, silent) for run in runs_in(folder))
    found = mlflow_run(database, recorded(run_folder(folder, "fedavg", 8))[uri])
    tags, parameters = found.data.tags, found.data.params
    assert (tags["arm"], tags["seed"], tags["comparison"]) == ("fedavg", "8", "compared")
    assert parameters["fingerprint"] == "9f2c" * 16
    assert (parameters["method.kind"], parameters["training.epochs"]) == ("fedavg", "3")
    assert parameters["site.cedar.tasks"] == "T1w->T2w, T2w->T1w"
    assert found.info.status == "FINISHED"
    points = mlflow_points(database, found.info.run_id)
    assert [step for step, _ in points["validation/alder"]] == list(range(1, 11))
    assert points["test/alder/psnr"] == [(10, 24.0)]
    first = next(moment for moment, _ in read_journal(runs_in(folder)[0] / "journal.jsonl"))
    start = mlflow_run(database, recorded(runs_in(folder)[0])[uri]).info.start_time
    assert start == round(first * 1000)


@pytest.mark.slow
def test_a_failure_says_where_and_what_but_not_the_message(tmp_path: Path, database: str):
    folder = write_run(tmp_path / "failed", PFLSYNTH, until=2)
    card = Failed("birch", 3, "train", "ValueError", "/data/birch/jane-doe.nii.gz is damaged", "")
    Journal(folder / "journal.jsonl").append(card)
    assert replay(folder, f"mlflow:{database}", silent)
    found = mlflow_run(database, recorded(folder)[f"mlflow:{database}"])
    assert found.info.status == "FAILED"
    assert found.data.tags["failed"] == "birch, round 3, train: ValueError"
    assert "jane-doe" not in str(found.to_dictionary())


@pytest.mark.slow
def test_training_goes_on_without_its_tracker_which_is_told_twice(
    tmp_path: Path,
    closed_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Once as soon as the server is found to be gone, and once in the end."""
    uri = f"mlflow:http://jane:secret@127.0.0.1:{closed_port}"
    words = ("--out", tmp_path / "run", "--rounds", "2", "--track", uri, "--quiet")
    done = inside(monkeypatch, capsys, "run", example("tiny"), *words)
    assert done.code == 0
    assert (tmp_path / "run" / "scores.csv").exists()
    at_once, in_the_end = done.err.splitlines()
    assert at_once.startswith(f"warning: mlflow:http://127.0.0.1:{closed_port} takes no points (")
    assert in_the_end.startswith(f"warning: 3 rounds or results of {tmp_path / 'run'} are not in ")
    assert f"grandrounds track {tmp_path / 'run'} --to mlflow:http://127.0.0.1:" in in_the_end
    assert "secret" not in done.err

    done = inside(monkeypatch, capsys, "track", tmp_path / "run", "--to", uri)
    assert done.code == 1
    board = f"tensorboard:{tmp_path / 'board'}"
    assert inside(monkeypatch, capsys, "track", tmp_path / "run", "--to", board).code == 0


def test_what_a_tracker_refused_is_brought_after_the_next_round(tmp_path: Path):
    """The folder of TensorBoard is a file until round 3."""
    folder, board = write_run(tmp_path / "run", PFLSYNTH, until=4), tmp_path / "board"
    board.write_text("in the way")
    said: list[str] = []
    with tracked(folder, [f"tensorboard:{board}"], said.append) as [tracker]:
        for moment, event in read_journal(folder / "journal.jsonl"):
            if isinstance(event, RoundFinished) and event.round == 3:
                board.unlink()
            if tracker.hear(moment, event):
                tracker.deliver()
    assert len(said) == 1
    assert "each round is a new try" in said[0]
    [key] = recorded(folder).values()
    assert [step for step, _ in tensorboard_points(board / key)["round/seconds"]] == [1, 2, 3, 4]


def test_a_record_that_a_killed_process_left_half_written_is_written_again(tmp_path: Path):
    folder, uri = write_run(tmp_path / "run", PFLSYNTH, until=3), f"tensorboard:{tmp_path}/board"
    assert replay(folder, uri, silent)
    board = tmp_path / "board" / recorded(folder)[uri]
    [file] = board.iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    assert len(tensorboard_points(board)["round/seconds"]) == 2
    assert replay(folder, uri, silent)
    points = tensorboard_points(board)
    assert {tuple(step for step, _ in found) for found in points.values()} == {(1, 2, 3)}


def test_another_run_of_the_same_study_has_its_own_folder_in_tensorboard(tmp_path: Path):
    uri = f"tensorboard:{tmp_path / 'board'}"
    for name in ("one", "two"):
        assert replay(write_run(tmp_path / name, PFLSYNTH, until=1), uri, silent)
    keys = [recorded(tmp_path / name)[uri] for name in ("one", "two")]
    assert keys == ["four-hospitals/pflsynth/seed-7", "four-hospitals/pflsynth/seed-7-2"]


def test_no_folder_outside_the_tracker_s_is_made_or_read(tmp_path: Path):
    uri = f"tensorboard:{tmp_path / 'board'}"
    upwards = write_run(tmp_path / "upwards", replace(PFLSYNTH, name="../../elsewhere"), until=1)
    with pytest.raises(BadFolder, match=r"arm '\.\./\.\./elsewhere': a name has letters"):
        replay(upwards, uri, silent)
    recalled = write_run(tmp_path / "recalled", PFLSYNTH, until=1)
    (recalled / "tracking.json").write_text(json.dumps({uri: "../elsewhere"}))
    said = list[str]()
    assert not replay(recalled, uri, said.append)
    assert "../elsewhere: is no run of the tracker" in said[0]
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_without_a_site_has_a_name_of_its_own(tmp_path: Path):
    folder = write_comparison(tmp_path / "compared", [FEDAVG])
    write_run(folder / "without" / "birch" / "arms" / "fedavg" / "seed-7", FEDAVG)
    uri = f"tensorboard:{tmp_path / 'board'}"
    assert all(replay(run, uri, silent) for run in runs_in(folder))
    assert [recorded(run)[uri] for run in runs_in(folder)] == [
        "compared/fedavg/seed-7",
        "compared/fedavg/seed-7-without-birch",
    ]


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("aim:home", "tracker 'aim:home': write mlflow:sqlite:///PATH.db"),
        ("tensorboard", "tracker 'tensorboard': write mlflow:sqlite:///PATH.db"),
        ("wandb:offline:", "tracker 'wandb:offline:': write mlflow:sqlite:///PATH.db"),
        ("mlflow:runs", "write mlflow:sqlite:///runs.db, or set MLFLOW_ALLOW_FILE_STORE=true"),
    ],
)
def test_a_tracker_that_cannot_be_is_refused_in_one_sentence(uri: str, sentence: str):
    with pytest.raises(BadInput, match=sentence):
        check_trackers([uri])


@pytest.mark.parametrize("kind", ["mlflow", "tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_names_what_to_install(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setitem(sys.modules, kind, None)
    uri = f"{kind}:http://127.0.0.1:9"
    words = ("--out", tmp_path / "run", "--track", uri)
    done = inside(monkeypatch, capsys, "run", example("tiny"), *words)
    assert done.code == 2
    assert done.err == (
        f"grandrounds: tracker '{uri}': {kind} is not installed; "
        f"install it with {install_command(kind)}\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_comparison_that_has_not_begun_cannot_be_tracked(tmp_path: Path):
    (tmp_path / "arms.toml").write_text("")
    with pytest.raises(BadFolder, match="none of its arms has begun"):
        runs_in(tmp_path)


def test_a_folder_in_which_nothing_started_cannot_be_tracked(tmp_path: Path):
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(BadFolder, match="no run has started here yet"):
        replay(tmp_path, f"tensorboard:{tmp_path / 'board'}", silent)


def test_a_study_is_one_line_for_each_option():
    study = {"a": {"b": [1, 2]}, "site": [{"name": "x", "n": 3}, {"name": "y", "n": 4}]}
    assert flat_parameters(study) == {
        "a.b": "1, 2",
        "site.x.name": "x",
        "site.x.n": "3",
        "site.y.name": "y",
        "site.y.n": "4",
    }


def test_an_address_is_shown_without_its_password():
    assert display_uri("mlflow:https://jane:secret@host:5000/x") == "mlflow:https://host:5000/x"
    assert display_uri("mlflow:sqlite:///runs.db") == "mlflow:sqlite:///runs.db"


def test_trackers_are_loaded_only_where_they_are_asked_for():
    heavy = {"torch", "mlflow", "tensorboard", "wandb", "monai"}
    assert not loaded_by("import grandrounds.report.tracking.tracker") & heavy
    assert not loaded_by("import grandrounds.cli") & heavy
