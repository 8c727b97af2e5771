"""What answers at once must not load what computes."""

from pathlib import Path

import pytest

from tests.helpers.command import loaded_by
from tests.helpers.run_folders import write_comparison

HEAVY = ("torch", "monai", "matplotlib", "scipy", "numpy", "pydantic", "nibabel")


@pytest.mark.parametrize("statement", ["import grandrounds", "import grandrounds.cli"])
def test_the_package_and_its_help_load_nothing_heavy(statement: str):
    assert not loaded_by(statement) & set(HEAVY)


@pytest.mark.slow
def test_what_computes_no_score_and_builds_no_network_of_monai_does_not_load_it():
    modules = ("runs.remote", "cli.study_output", "runs.loop", "runs.comparison", "runs.costs")
    statement = ", ".join(f"grandrounds.{module}" for module in modules)
    assert not loaded_by(f"import {statement}") & {"monai", "ignite", "nvflare", "matplotlib"}


@pytest.mark.slow
def test_what_runs_on_one_machine_needs_nothing_of_what_goes_between_hospitals():
    """It is installed without the extra `flare`."""
    modules = ("api.run", "api.study", "testing", "runs.loop", "runs.comparison", "runs.remote")
    commands = ("studies", "results", "sweep", "new", "study_output")
    names = [*modules, *(f"cli.{each}" for each in commands)]
    statement = ", ".join(f"grandrounds.{name}" for name in names)
    assert not loaded_by(f"import {statement}") & {"cryptography", "nvflare"}


@pytest.mark.slow
def test_a_report_needs_no_torch(tmp_path: Path):
    folder = write_comparison(tmp_path / "compared")
    statement = (
        "from grandrounds.report.page.html import write_report; from pathlib import Path; "
        f"write_report(Path({str(folder)!r}))"
    )
    assert not loaded_by(statement) & {"torch", "monai", "safetensors"}
    assert (folder / "report.html").exists()
