"""What is not installed is named with a command that adds it here, however this was installed."""

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from grandrounds.core import extras
from grandrounds.core.extras import install_command

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation in a folder of its own, whose origin is written into it."""
    info = tmp_path / "site" / "grandrounds-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: grandrounds\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(sys, "executable", "/opt/an env/bin/python")
    return info / "direct_url.json"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "my clone"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    return folder


PIP = "'/opt/an env/bin/python' -m pip install"


def test_from_an_index_the_name_is_enough(installed: Path):
    assert metadata.version("grandrounds") == "9.9"
    assert install_command("flare") == f"{PIP} 'grandrounds[flare]'"


@pytest.mark.parametrize(("editable", "switch"), [(True, "-e "), (False, "")])
def test_from_a_clone_the_clone_is_named(installed: Path, clone: Path, editable: bool, switch: str):
    facts = {"editable": True} if editable else {}
    installed.write_text(json.dumps({"url": clone.as_uri(), "dir_info": facts}))
    assert install_command("flare") == f"{PIP} {switch}'{clone}[flare]'"
    (clone / "constraints.txt").touch()
    pins = f"-c '{clone}/constraints.txt'"
    assert install_command("export") == f"{PIP} {pins} {switch}'{clone}[export]'"


def test_a_clone_that_was_removed_is_asked_for(installed: Path, tmp_path: Path):
    installed.write_text(json.dumps({"url": (tmp_path / "gone").as_uri(), "dir_info": {}}))
    assert install_command("flare") == (
        f"{PIP} '.[flare]', in a checkout of the version that is installed"
    )


@pytest.mark.parametrize(
    ("origin", "place"),
    [
        (
            {"url": "https://example.org/g.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
            f"git+https://example.org/g.git@{COMMIT}",
        ),
        ({"url": "file:///w/g-9.9.whl", "archive_info": {}}, "file:///w/g-9.9.whl"),
    ],
)
def test_from_elsewhere_the_place_is_named(installed: Path, origin: dict[str, Any], place: str):
    installed.write_text(json.dumps(origin))
    assert install_command("mlflow") == f"{PIP} 'grandrounds[mlflow] @ {place}'"


def test_a_clone_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extras, "_PACKAGE", "no-such-package-is-installed")
    assert f"-e {Path(extras.__file__).parents[3]}[flare]" in install_command("flare").replace(
        "'", ""
    )


def test_an_environment_without_pip_is_uv_s(installed: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extras, "_has_pip", lambda: False)
    assert install_command("flare").startswith("uv pip install --python '/opt/an env/bin/python' ")
