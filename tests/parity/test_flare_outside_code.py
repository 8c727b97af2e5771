"""A method of one's own, as an installed package, on a federation with mutual TLS."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.runs.loop import run_study as run
from grandrounds.study.study import Study
from tests.helpers.command import Done
from tests.helpers.flare_federation import (
    SERVER,
    Town,
    commanded,
    differing,
    needs_flare,
    provisioned,
    small,
    written,
)
from tests.helpers.packages import OURS, WORD, lay_down, was_imported

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.full, needs_flare]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the method's package, which every process here finds."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(lay_down(folder))
    paths = (str(folder), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    yield folder
    sys.modules.pop("our_methods", None)


def accepted(town: Town, study: Study) -> list[Done]:
    path = written(study, town.folder)
    kits = [town.kit(site) for site in study.trainers]
    return [commanded("site", "accept", path, "--kit", kit, "--json") for kit in kits]


def test_an_installed_method_runs_across_hospitals_until_it_is_changed(
    packages: Path, tmp_path: Path
):
    study = small(f"method.kind={WORD}")
    other = replace(study, name="other")
    with provisioned(study, tmp_path / "federation") as town:
        town.start(SERVER, *study.trainers)
        for done in [*accepted(town, study), *accepted(town, other)]:
            assert json.loads(done.out)["code"][0]["word"] == WORD, done.err
        done = town.submit(study)
        assert done.code == 0, done.err
        job = json.loads(done.out)["job"]
        fetched = tmp_path / "fetched"
        kit = town.kit("admin")
        assert commanded("federation", "fetch", job, "--kit", kit, "--out", fetched).code == 0
        run(study, tmp_path / "here")
        assert differing(tmp_path / "here", fetched) == []

        (packages / "our_methods.py").write_text(OURS + "# mended\n")
        refused = town.submit(other)
        assert refused.code == 1
        assert "cannot open: the code that this study names is not what it accepted" in refused.err
        assert not town.run(other).exists()

        lay_down(packages, files={"our_methods.py": OURS + "# mended\n"})
        (packages / "our_methods-0.3.1.dist-info" / "RECORD").unlink()
        (packages / "our_methods.imported").unlink()
        unknown = town.submit(other)
        assert unknown.code == 2
        assert f'method.kind = "{WORD}": our_methods is no installed package here' in unknown.err
        assert not was_imported(packages)
