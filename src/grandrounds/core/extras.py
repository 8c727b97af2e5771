"""A package that is not installed is named with the command that adds it to this installation.

`pip install 'grandrounds[flare]'` asks an index of packages, which has no grandrounds for who works
from a clone; so the command follows how this installation was made (PEP 610).
"""

import json
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

_PACKAGE = "grandrounds"
_CLONE = Path(__file__).parents[3]  # of a package that lies in a clone's src


def install_command(extra: str) -> str:
    """Return the command that adds an extra to this installation, for a shell."""
    return f"{_installer()} {_what(extra, _origin())}"


def _installer() -> str:
    """Return pip of this environment: `pip` alone may be another one's."""
    python = shlex.quote(sys.executable)
    return f"{python} -m pip install" if _has_pip() else f"uv pip install --python {python}"


def _has_pip() -> bool:
    """Look for pip without importing anything: setuptools watches who looks, and meddles."""
    try:
        distribution("pip")
    except PackageNotFoundError:
        return False
    return True


def _origin() -> Mapping[str, Any]:
    """Return where this installation came from; empty where it came from an index."""
    try:
        text = distribution(_PACKAGE).read_text("direct_url.json")
    except PackageNotFoundError:  # a clone that is on the path, and is not installed
        return {"url": _CLONE.as_uri(), "dir_info": {"editable": True}}
    return cast(Mapping[str, Any], json.loads(text)) if text else {}


def _what(extra: str, origin: Mapping[str, Any]) -> str:
    url = str(origin.get("url", ""))
    if not url:
        return shlex.quote(f"{_PACKAGE}[{extra}]")
    if "dir_info" in origin:
        return _from_folder(extra, Path(unquote(urlsplit(url).path)), origin["dir_info"])
    source = origin.get("vcs_info")
    place = f"{source['vcs']}+{url}@{source['commit_id']}" if source else url
    return shlex.quote(f"{_PACKAGE}[{extra}] @ {place}")


def _from_folder(extra: str, clone: Path, facts: Mapping[str, Any]) -> str:
    if not (clone / "pyproject.toml").exists():  # it was removed after `pip install .`
        return f"{shlex.quote(f'.[{extra}]')}, in a checkout of the version that is installed"
    pins = clone / "constraints.txt"
    words = [
        *(["-c", str(pins)] if pins.exists() else []),
        *(["-e"] if facts.get("editable") else []),
    ]
    return shlex.join([*words, f"{clone}[{extra}]"])
