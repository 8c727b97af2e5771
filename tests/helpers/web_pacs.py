"""A small DICOMweb server for tests, on a real socket, that can be told to behave badly."""

import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pydicom.dataset import FileDataset

_SERIES = re.compile(r"/dicom-web/studies/([^/]+)/series/([^/]+)(?:/instances(?:/([^/]+))?)?$")
BOUNDARY = "part-of-the-test"


@dataclass
class Misbehaviour:
    """What a server does instead; each takes the handler, and returns True if it answered."""

    before: Callable[["Handler", str], bool] = lambda handler, path: False
    token: str | None = None
    cut_after: int | None = None  # parts of a series, after which the connection ends


@dataclass
class WebPacs:
    """Files by study, series and UID, what was asked, and how the server behaves."""

    files: Mapping[tuple[str, str, str], FileDataset]
    how: Misbehaviour = field(default_factory=Misbehaviour)
    asked: list[str] = field(default_factory=list[str])
    sent: list[str] = field(default_factory=list[str])
    tokens: list[str | None] = field(default_factory=list[str | None])
    url: str = ""

    def below(self, *place: str) -> list[FileDataset]:
        return [made for key, made in self.files.items() if key[: len(place)] == place]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    pacs: WebPacs

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.pacs.asked.append(self.path)
        self.pacs.tokens.append(self.headers.get("Authorization"))
        if self.pacs.how.before(self, parts.path):
            return
        if self.pacs.how.token and self.headers.get("Authorization") != self.pacs.how.token:
            self.answer(b"who are you?", code=401)
            return
        self._serve(parts.path, parse_qs(parts.query))

    def _serve(self, path: str, query: Mapping[str, list[str]]) -> None:
        if "offset" in query:
            self.json([])
        elif path == "/dicom-web/studies":
            self.json(_once(_told(made) for made in self.pacs.files.values()))
        elif match := re.fullmatch(r"/dicom-web/studies/([^/]+)/series", path):
            self.json(_once(_of_series(made, self.pacs) for made in self.pacs.below(match[1])))
        elif match := _SERIES.fullmatch(path):
            self._serve_series(match)
        else:
            self.answer(b"nothing here", code=404)

    def _serve_series(self, match: re.Match[str]) -> None:
        study, series, uid = match.groups()
        if uid is None and match.string.endswith("/instances"):
            found = self.pacs.below(study, series)
            self.json(
                [{"00080018": {"vr": "UI", "Value": [made.SOPInstanceUID]}} for made in found]
            )
            return
        self.parts(self.pacs.below(*(each for each in match.groups() if each)))

    def parts(self, files: Iterable[FileDataset]) -> None:
        """Send files as parts, in chunks; cut the connection where the server is told to."""
        self.send_response(200)
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()
        for number, made in enumerate(files):
            head = f"\r\n--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            content = as_bytes(made)
            if number == self.pacs.how.cut_after:
                self.wfile.write(head + content[: len(content) // 2])
                self.close_connection = True
                return
            self.pacs.sent.append(made.SOPInstanceUID)
            self.wfile.write(head + content)
        self.wfile.write(f"\r\n--{BOUNDARY}--\r\n".encode())
        self.close_connection = True

    def json(self, value: object) -> None:
        self.answer(json.dumps(value).encode(), "application/dicom+json")

    def answer(self, content: bytes, kind: str = "text/plain", *, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def drip(self, seconds: float) -> None:
        """Say nothing for a while."""
        time.sleep(seconds)
        self.close_connection = True


def as_bytes(made: FileDataset) -> bytes:
    content = BytesIO()
    made.save_as(content, enforce_file_format=True)
    return content.getvalue()


def _told(made: FileDataset) -> Mapping[str, object]:
    values = {
        "00080020": made.StudyDate,
        "00080030": made.StudyTime,
        "00081030": made.StudyDescription,
        "00100020": made.PatientID,
        "0020000D": made.StudyInstanceUID,
    }
    return {tag: {"vr": "LO", "Value": [str(value)]} for tag, value in values.items()}


def _of_series(made: FileDataset, pacs: WebPacs) -> Mapping[str, object]:
    count = len(pacs.below(made.StudyInstanceUID, made.SeriesInstanceUID))
    values = {
        "00080060": made.Modality,
        "0008103E": made.SeriesDescription,
        "0020000E": made.SeriesInstanceUID,
        "00201209": count,
    }
    return {tag: {"vr": "LO", "Value": [value]} for tag, value in values.items()}


def _once(values: Iterable[Mapping[str, object]]) -> list[Mapping[str, object]]:
    found = {json.dumps(value, sort_keys=True): value for value in values}
    return list(found.values())


@contextmanager
def web_pacs(
    files: Iterable[FileDataset], how: Misbehaviour | None = None, tls: Path | None = None
) -> Iterator[WebPacs]:
    """Serve files over DICOMweb, on a free port of 127.0.0.1; `tls` holds certificate and key."""
    pacs = WebPacs(
        {(f.StudyInstanceUID, f.SeriesInstanceUID, f.SOPInstanceUID): f for f in files},
        how or Misbehaviour(),
    )
    handler = type("OwnHandler", (Handler,), {"pacs": pacs})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    scheme = "http"
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    pacs.url = f"{scheme}://127.0.0.1:{server.server_address[1]}/dicom-web"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield pacs
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
