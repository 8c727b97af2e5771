"""What a job may ask of a party's disk: its own run, by a name, and nothing else."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grandrounds.core.errors import BadStudy
from grandrounds.study.file import to_toml
from tests.helpers.federation import tiny
from tests.helpers.flare_federation import needs_flare

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from grandrounds.flare.controller import StudyController
from grandrounds.flare.executor import SiteExecutor
from grandrounds.flare.job import export_job, hand_out, job_paths, run_name

pytestmark = needs_flare

PATHS = ["../startup", "..", "/etc", "a/../../startup", "", "con", "a\\b", 7, None, ["a"]]


def context_in(kit: Path, name: str = "alder") -> Any:
    """What NVFlare tells a job about the folders of the kit that it runs in."""
    workspace = SimpleNamespace(
        get_app_config_dir=lambda job: str(kit / job / "config"),
        get_site_config_dir=lambda: str(kit / "local"),
        get_startup_kit_dir=lambda: str(kit / "startup"),
        get_root_dir=lambda: str(kit),
        get_run_dir=lambda job: str(kit / job),
    )
    engine = SimpleNamespace(get_workspace=lambda: workspace)
    return SimpleNamespace(
        get_engine=lambda: engine, get_job_id=lambda: "job", get_identity_name=lambda: name
    )


@pytest.mark.parametrize("run", PATHS)
def test_a_job_whose_run_is_a_path_is_refused_by_server_and_site(run: Any):
    for party in (StudyController, SiteExecutor):
        with pytest.raises(BadStudy, match=r"^run "):
            party(run=run)


@pytest.mark.parametrize("run", PATHS)
def test_no_path_is_made_of_a_run_that_is_a_path(run: Any, tmp_path: Path):
    with pytest.raises(BadStudy, match=r"^run "):
        job_paths(context_in(tmp_path), run)


def test_a_site_of_the_simulator_cannot_name_a_path_either(tmp_path: Path):
    assert job_paths(context_in(tmp_path), "tiny").run == tmp_path / "grandrounds" / "tiny"
    with pytest.raises(BadStudy, match=r"^site '\.\./alder'"):
        job_paths(context_in(tmp_path, "../alder"), "tiny")


def test_no_job_is_written_for_a_run_that_is_a_path(tmp_path: Path):
    with pytest.raises(BadStudy, match=r"^run "):
        export_job(tiny(), tmp_path / "job", run="../startup")
    assert not (tmp_path / "job").exists()


def test_a_long_study_s_run_has_a_short_name_that_no_other_study_has():
    long, other = tiny(f"name={'x' * 64}"), tiny(f"name={'x' * 63}y")
    assert len(run_name(long)) == 64
    assert run_name(long) != run_name(other)
    assert run_name(tiny()).startswith("tiny-")


def test_only_the_run_of_the_job_s_own_study_is_handed_out(tmp_path: Path):
    """A job may name the run of another study, which is refused; its files stay where they are."""
    run, result = tmp_path / "run", tmp_path / "result"
    run.mkdir()
    (run / "scores.csv").write_text("secret")
    hand_out(tiny(), run, result)
    assert not result.exists()
    (run / "study.toml").write_text(to_toml(tiny("rounds=7")))
    hand_out(tiny(), run, result)
    assert not result.exists()
    (run / "study.toml").write_text(to_toml(tiny()))
    hand_out(tiny(), run, result)
    assert (result / "scores.csv").read_text() == "secret"
