"""A real PACS for tests: Debian's Orthanc with its DICOMweb plugin, on 127.0.0.1 alone."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import FileDataset

PLUGINS = (
    *("/usr/share/orthanc/plugins/libOrthancDicomWeb.so",),
    "/usr/lib/orthanc/libOrthancDicomWeb.so",
)
USER, PASSWORD = "site", "moulin"


def required_program(name: str) -> str:
    """Find a program; without it a test is skipped by name, and fails where CI is to have it."""
    found = shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if found:
        return found
    reason = f"the test needs the program {name}, which is not installed"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _plugin() -> str:
    found = next((path for path in PLUGINS if Path(path).exists()), None)
    if found:
        return found
    reason = "the test needs Orthanc's plugin for DICOMweb, which is not installed"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class OrthancServer:
    """One PACS: its storage stays while it is killed and started again."""

    folder: Path
    http: int = field(default_factory=free_port)
    dimse: int = field(default_factory=free_port)
    title: str = "TESTPACS"
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of DICOMweb."""
        return f"http://127.0.0.1:{self.http}/dicom-web"

    @property
    def rest(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def start(self) -> None:
        program, config = required_program("Orthanc"), self.folder / "orthanc.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(self._settings()))
        with (self.folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen([program, config], stdout=log, stderr=log)
        self._wait()

    def _settings(self) -> Mapping[str, object]:
        return {
            "Name": "test",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "HttpPort": self.http,
            "HttpBindAddresses": ["127.0.0.1"],
            "DicomPort": self.dimse,
            "DicomAet": self.title,
            "DicomAlwaysAllowStore": True,
            "DicomCheckCalledAet": False,
            "RemoteAccessAllowed": True,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "Plugins": [_plugin()],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full"},
        }

    def _wait(self) -> None:
        for _ in range(300):
            assert self.process
            if self.process.poll() is not None:
                break
            try:
                if self.asked("system").ok:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.2)
        raise AssertionError((self.folder / "orthanc.log").read_text()[-2000:])

    def kill(self) -> None:
        """End the PACS as a power cut would."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def asked(self, path: str, **options: Any) -> requests.Response:
        """Ask Orthanc's own interface."""
        address = f"{self.rest}/{path}"
        return requests.get(address, auth=(USER, PASSWORD), timeout=30, **options)

    def store(self, files: Iterable[FileDataset]) -> int:
        """Upload files by Orthanc's own interface; return how many it took."""
        count = 0
        for made in files:
            content = BytesIO()
            made.save_as(content, enforce_file_format=True)
            answer = requests.post(
                f"{self.rest}/instances",
                data=content.getvalue(),
                auth=(USER, PASSWORD),
                timeout=30,
            )
            answer.raise_for_status()
            count += 1
        return count

    def stow(self, files: Sequence[FileDataset]) -> None:
        """Upload files over DICOMweb (STOW-RS), by a client that is not ours."""
        session = requests.Session()
        session.auth = (USER, PASSWORD)
        DICOMwebClient(self.url, session=session).store_instances(list(files))

    def send(self, folder: Path) -> None:
        """Send the files of a folder over DICOM's own protocol, by dcmtk."""
        words = ("-aec", self.title, "127.0.0.1", str(self.dimse), "+sd", str(folder))
        subprocess.run([required_program("storescu"), *words], check=True, capture_output=True)

    def uids(self) -> set[str]:
        """Return the UIDs of all files that the PACS holds."""
        found = self.asked("instances?expand").json()
        return {each["MainDicomTags"]["SOPInstanceUID"] for each in found}


@contextmanager
def orthanc(folder: Path) -> Iterator[OrthancServer]:
    """Start a PACS, and see that it is gone in the end."""
    server = OrthancServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def archive_toml(url: str, *, folder: Path, name: str = "alder", more: str = "") -> Path:
    """Write the site file of a site that ingests from a PACS, with the token in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(f"{USER}:{PASSWORD}\n")
    path = folder / "site.toml"
    path.write_text(
        f'name = "{name}"\ndata = "prepared"\n[archive]\nurl = "{url}"\nvolumes = "volumes"\n'
        'identified = true\n[archive.access]\ntoken_file = "token"\ntoken_kind = "Basic"\n'
        f"pause = 0.05\nretries = 2\ntimeout = 10\n{more}"
    )
    return path
