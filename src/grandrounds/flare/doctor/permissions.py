"""These checks read what a party allows: which code may run, which study, on which data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from grandrounds.core.code import check_signed_code
from grandrounds.core.errors import BadSite
from grandrounds.flare.doctor.finding import Finding, Party, bad, ok, skipped
from grandrounds.flare.job import ALLOWED, REGISTRATION, SITE
from grandrounds.flare.provision import CODE
from grandrounds.runs.site_data import open_sites
from grandrounds.study.acceptance import check_acceptance, load_acceptance
from grandrounds.study.file import fingerprint
from grandrounds.study.installed import code_of_study
from grandrounds.study.site_file import read_site
from grandrounds.study.study import Study

_NOTHING_RUNS = "nothing runs from the admin's kit"
_NO_STUDY = "no --study is given"


def classes(party: Party) -> Finding:
    """Check that jobs may use only our two classes."""
    if party.kit.kind == "admin":
        return skipped(_NOTHING_RUNS)
    settings = _settings(party)
    listed = cast(list[str], settings.get("class_allow_list", []))
    mend = f"let class_allow_list in local/resources.json be {json.dumps(ALLOWED)}"
    if missing := [name for name in ALLOWED if name not in listed]:
        return bad(f"class_allow_list lacks {', '.join(missing)}", mend)
    if others := [name for name in listed if name not in ALLOWED]:
        return bad(f"class_allow_list allows '{', '.join(others)}', too", mend)
    if settings.get("class_list_enforcement_mode", "enforce") != "enforce":
        return bad("class_allow_list is only warned about", "enforce it in local/resources.json")
    return ok("class_allow_list holds our controller and our executor, and no other")


def code(party: Party) -> Finding:
    """Check that nobody may submit code: the allow-list of classes does not bind such a job."""
    if party.kit.kind == "admin":
        return skipped(_NOTHING_RUNS)
    path = party.kit.local / "authorization.json"
    mend = f"let every role in {path} have {', '.join(CODE)} as none"
    if not path.exists():
        return bad(f"{path} is missing: NVFlare's default lets the admin's jobs bring code", mend)
    permissions = cast(Mapping[str, Mapping[str, str] | str], _read(path)["permissions"])
    for role, rights in permissions.items():
        allowed = {} if isinstance(rights, str) else {word: rights.get(word) for word in CODE}
        if set(allowed.values()) != {"none"}:
            return bad(f"role '{role}' may bring code or run commands here", mend)
    return ok("no job may bring code, and nobody may run commands here")


def log_rules(party: Party) -> Finding:
    """Check that this party's logs stay with it."""
    if party.kit.kind == "admin":
        return skipped(_NOTHING_RUNS)
    if _settings(party).get("allow_log_streaming") is not False:
        mend = "let allow_log_streaming in local/resources.json be false"
        return bad("allow_log_streaming is not false: this party's log may leave it", mend)
    return ok("allow_log_streaming is false: this party's log stays here")


def registration(party: Party) -> Finding:
    """Check that the server looks for revoked certificates before it lets a party in."""
    if party.kit.kind != "server":
        return skipped("for the server alone")
    components = cast(list[Mapping[str, object]], _settings(party).get("components", []))
    if REGISTRATION not in [each.get("path") for each in components]:
        ours = json.dumps({"id": "registration", "path": REGISTRATION, "args": {}})
        mend = f"add {ours} to the components in local/resources.json"
        return bad("the server lets revoked certificates in", mend)
    return ok("nobody is let in with a revoked certificate")


def acceptance(party: Party) -> Finding:
    """Check that this site has signed this study and the code that is here. Raises `BadSite`."""
    if excuse := _excuse(party):
        return excuse
    kit, study = party.kit, fingerprint(_study(party))
    word = load_acceptance(study, kit.local)
    if word is None:
        mend = f"grandrounds site accept STUDY --kit {kit.folder}"
        return bad(f"study {study[:12]}... is not accepted", mend)
    check_acceptance(word, site=kit.name, study=study, root=party.authority)
    check_signed_code(word.code, code_of_study(_study(party)), kit.name)
    return ok(f"study {study[:12]}... was accepted at {word.time}")


def elements(party: Party) -> Finding:
    """Check that the site's data can be opened as in a run. Raises `BadInput` where they cannot."""
    if excuse := _excuse(party):
        return excuse
    name, own = party.kit.name, party.kit.local / SITE
    path = party.site or own
    files = [read_site(path)] if path.exists() or party.site else []
    if not files and _is_real(_study(party), name):
        return bad(f"{own} is missing", "write there where this site's data lies: name, data")
    ready = open_sites(_study(party), files, only={name})[name].ready
    counts = ", ".join(f"{count} {split}" for split, count in ready.patients.items())
    source = f"{path}; a run reads {own}" if files else "simulated by the study"
    return ok(f"patients: {counts}; {source}")


def _is_real(study: Study, name: str) -> bool:
    return any(spec.name == name and spec.data == "files" for spec in study.site)


def _excuse(party: Party) -> Finding | None:
    """Return why a check of the study is skipped, or that this site is not in the study."""
    if party.kit.kind != "client":
        return skipped("for sites alone")
    if party.study is None:
        return skipped(_NO_STUDY)
    if party.kit.name not in party.study.trainers:
        known = ", ".join(party.study.trainers)
        return bad(f"the study has no site '{party.kit.name}'; it has {known}", "give its study")
    return None


def _study(party: Party) -> Study:
    assert party.study, "_excuse has spoken"
    return party.study


def _settings(party: Party) -> Mapping[str, Any]:
    """Read a party's settings of NVFlare. Raises `BadSite`."""
    return _read(party.kit.local / "resources.json")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return cast(Mapping[str, Any], json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise BadSite(f"{path}: cannot be read ({error}); put back the kit's own") from None
