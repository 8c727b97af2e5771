"""NVFlare's simulator plays a study to the digests of this process: over every topology by its own
command line, and in one job for every method over every topology.
"""

import json
from pathlib import Path

import pytest

from grandrounds.algorithms import TOPOLOGIES
from grandrounds.core.weights import first_not_finite
from grandrounds.flare.job import CONTROLLER, EXECUTOR, export_job, run_name
from grandrounds.runs.loop import run_study as run
from grandrounds.study.file import to_toml
from tests.golden.test_golden import ARMS
from tests.helpers.federation import digests, rows, tiny
from tests.helpers.flare_federation import (
    commanded,
    differing,
    made_once,
    needs_flare,
    simulated,
    small,
    written,
)
from tests.helpers.grids import with_representatives

pytestmark = [pytest.mark.engine, pytest.mark.slow, needs_flare]

BY_COMMAND = ("pflsynth", "scaffold@swarm", "cyclic-travels", "relay-sites", "fedmedgan@split")
POOLED = [arm for arm, words in ARMS.items() if small(*words).build_method().sharing().pooled]
LARGE = {  # letters of 6 MB, which are fetched in parts
    f"fedavg@{kind}-large": ("method.kind=fedavg", f"topology.kind={kind}", "task.width=44")
    for kind in ("star", "swarm")
}
STUDIES = ARMS | LARGE
AS_THE_STAR = [  # within a group a relay asks what a star asks; a method of each family does
    arm for arm in ARMS if arm.endswith("@relay") and arm not in ("fedavg@relay", "fedbn@relay")
]
IN_THE_GRID = [arm for arm in STUDIES if arm not in (*BY_COMMAND, *POOLED, *AS_THE_STAR)]
SECONDS_EACH = 15.0  # on a busy machine; a study takes about two
CLASSES = {
    CONTROLLER: "tests.helpers.flare_grid.GridController",
    EXECUTOR: "tests.helpers.flare_grid.GridExecutor",
}


def assert_same(arm: str, there: Path, folder: Path) -> None:
    """A run is what this process computes, which is finite and changes from round to round."""
    here = folder / "here"
    state = run(small(*STUDIES[arm]), here)
    assert first_not_finite(state.weights) is None
    assert len(set(digests(here))) == 2
    assert differing(here, there) == []


def play_the_grid(folder: Path) -> None:
    """Play many studies in one job: ours, but for a controller and an executor of the tests."""
    job = folder / "job"
    export_job(small(), job, run="grid")
    config = job / "app" / "config"
    for name in ("config_fed_server.json", "config_fed_client.json"):
        text = (config / name).read_text()
        for ours, theirs in CLASSES.items():
            text = text.replace(ours, theirs)
        (config / name).write_text(text)
    (config / "studies").mkdir()
    for arm in IN_THE_GRID:
        (config / "studies" / f"{arm}.toml").write_text(to_toml(small(*STUDIES[arm])))
    seconds = SECONDS_EACH * len(IN_THE_GRID)
    simulated(job, small(), folder / "played", list(CLASSES.values()), seconds=seconds)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the server's runs, one for each arm."""
    folder = made_once(tmp_path_factory, "grid", play_the_grid)
    return folder / "played" / "server" / "grandrounds" / "grid"


@pytest.mark.parametrize("arm", with_representatives(BY_COMMAND, BY_COMMAND[:1]))
def test_a_job_that_we_export_plays_in_nvflares_own_simulator(arm: str, tmp_path: Path):
    study = small(*ARMS[arm])
    words = ("federation", "export", written(study, tmp_path), "--out", tmp_path / "job", "--json")
    done = commanded(*words)
    assert json.loads(done.out) == {"job": str(tmp_path / "job")}
    runs = simulated(tmp_path / "job", study, tmp_path / "played")
    assert_same(arm, runs / run_name(study), tmp_path)


@pytest.mark.full
def test_a_secure_sum_in_nvflares_simulator_has_the_digests_of_this_process(tmp_path: Path):
    study = tiny("rounds=2", "method.kind=fedavg", "privacy.secure_sum=true", sites=3)
    export_job(study, tmp_path / "job")
    runs = simulated(tmp_path / "job", study, tmp_path / "played")
    run(study, tmp_path / "here")
    there = runs / run_name(study)
    assert digests(there) == digests(tmp_path / "here")
    assert len(set(digests(there))) == 2
    assert rows(there / "scores.csv") == rows(tmp_path / "here" / "scores.csv")


def test_every_topology_is_played_by_the_command():
    assert {small(*ARMS[arm]).topology.kind for arm in BY_COMMAND} == set(TOPOLOGIES)


def test_only_what_pools_the_data_of_all_sites_is_not_played():
    assert sorted(POOLED) == ["central", "pgan", "pix2pix"]
    assert len(IN_THE_GRID) >= 50


@pytest.mark.full
def test_some_letters_are_too_large_to_be_pushed(grid: Path):
    from grandrounds.flare.transport import AT_ONCE, SMALL

    sent = {int(row["bytes_up"]) for arm in LARGE for row in rows(grid / arm / "rounds.csv")}
    assert min(sent) > AT_ONCE > SMALL


@pytest.mark.full
@pytest.mark.parametrize("arm", IN_THE_GRID)
def test_every_method_over_every_topology_has_the_digests_of_this_process(
    arm: str, grid: Path, tmp_path: Path
):
    assert_same(arm, grid / arm, tmp_path)
