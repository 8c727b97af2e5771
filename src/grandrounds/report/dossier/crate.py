"""A dossier is described for programs as an RO-Crate 1.1: `ro-crate-metadata.json`."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from grandrounds.core.run_folder import RunFolder
from grandrounds.report.dossier.facts import Dossier

METADATA = "ro-crate-metadata.json"
_SHA256 = "https://w3id.org/ro/terms/workflow-run#sha256"
_TYPES: Mapping[str, str] = {
    ".html": "text/html",
    ".toml": "application/toml",
    ".jsonl": "application/jsonl",
    ".json": "application/json",
    ".csv": "text/csv",
    ".txt": "text/plain",
}


def crate_metadata(dossier: Dossier, folder: Path, files: Mapping[str, str]) -> str:
    """Return the crate's metadata; `files` maps paths in `folder` to what each of them is.

    Soiland-Reyes et al. 2022; https://w3id.org/ro/crate/1.1.
    """
    described = [_file(folder, path, words) for path, words in files.items()]
    graph = [
        {
            "@id": METADATA,
            "@type": "CreativeWork",
            "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
            "about": {"@id": "./"},
        },
        _root(dossier, described),
        *described,
        *_context(dossier),
    ]
    context = ["https://w3id.org/ro/crate/1.1/context", {"sha256": _SHA256}]
    return json.dumps({"@context": context, "@graph": graph}, indent=2)


def _root(dossier: Dossier, described: Sequence[Mapping[str, object]]) -> dict[str, object]:
    study = dossier.started
    return {
        "@id": "./",
        "@type": "Dataset",
        "name": f"What left the sites of the study {study.name}",
        "description": (
            f"Ledgers, participation and versions of a run of the study {study.name} "
            f"({study.title or study.arm}) at {len(study.sites)} sites. No patient data."
        ),
        "datePublished": datetime.now(UTC).date().isoformat(),
        "license": {"@id": "#terms"},
        "hasPart": [{"@id": each["@id"]} for each in described],
        "mentions": [{"@id": "#run"}],
    }


def _file(folder: Path, path: str, words: str) -> dict[str, object]:
    content = (folder / path).read_bytes()
    return {
        "@id": path,
        "@type": "File",
        "name": words,
        "encodingFormat": _TYPES.get(Path(path).suffix, "application/octet-stream"),
        "contentSize": str(len(content)),
        "sha256": sha256(content).hexdigest(),
    }


def _context(dossier: Dossier) -> list[dict[str, object]]:
    """Return who ran what with which programs."""
    study = dossier.started
    sites: list[dict[str, object]] = [
        {"@id": f"#site-{name}", "@type": "Organization", "name": name} for name in study.sites
    ]
    return [
        {
            "@id": "#terms",
            "@type": "CreativeWork",
            "name": "For the data officers of the consortium",
            "description": "Not for publication unless the consortium agrees.",
        },
        *sites,
        {
            "@id": "#grandrounds",
            "@type": "SoftwareApplication",
            "name": "grandrounds",
            "softwareVersion": study.version,
            "softwareRequirements": f"torch {study.torch}",
        },
        {
            "@id": "#run",
            "@type": "CreateAction",
            "name": f"{dossier.rounds} rounds of the study {study.name}",
            "description": f"Study {study.study}; {dossier.began} to {dossier.ended}.",
            "agent": [{"@id": each["@id"]} for each in sites],
            "instrument": {"@id": "#grandrounds"},
            "object": {"@id": RunFolder.study},
            "result": {"@id": "departures.csv"},
        },
    ]
