"""A PACS is asked over DICOMweb (PS3.18: QIDO-RS, WADO-RS), and nothing that it says is believed.

`requests` is used as it is: a client that parses what it receives would parse a stranger's files in
this process, and hold them whole.
"""

import json
import logging
import os
import re
import ssl
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, cast
from urllib.parse import urljoin, urlsplit

import requests
from requests.exceptions import ConnectionError as Unreachable
from requests.exceptions import RequestException, SSLError, Timeout
from urllib3.exceptions import HTTPError

from grandrounds.core.errors import BadSite
from grandrounds.data.archive.multipart import BadAnswer, PartStream, boundary_of
from grandrounds.data.archive.settings import Access, ArchiveQuery

DicomJson: TypeAlias = Mapping[str, Any]
PAGE = 500  # answers of one question
LARGEST_PAGE = 64 << 20  # bytes of a page of answers
MOST_ANSWERS = 200_000  # studies of a query, or series or files below one
LARGEST_FILE = 2 << 30  # bytes of one file that a PACS sends
LARGEST_SENT = 16 << 30  # bytes of one series
SLOWEST = 2048  # bytes a second: who drips slower, over more than a timeout, is given up
_REDIRECTS = 3
_NESTED = 8  # errors in each other, of which the innermost says most
_LONGEST_WAIT = 60.0  # seconds before a repetition
_CHUNK = 1 << 16
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_FOR_NOW = (408, 425, 429, 500, 502, 503, 504)
_WORDS = {
    "patient": "00100020",
    "day": "00080020",
    "time": "00080030",
    "study": "0020000D",
    "series": "0020000E",
    "file": "00080018",
    "modality": "00080060",
    "body_part": "00180015",
    "description": "0008103E",
    "study_description": "00081030",
    "files": "00201209",
}
_OF_STUDY = ("study", "patient", "day", "time", "study_description")
_OF_SERIES = ("series", "modality", "body_part", "description", "files")


@dataclass(frozen=True)
class WebSeries:
    """A series that a PACS has, as it says: whose, of which study and day, how many files."""

    patient: str
    study: str
    series: str
    day: str
    files: int


class PacsTrouble(BadSite):
    """A PACS does not give what was asked; `of_all` tells whether it would give nothing else."""

    def __init__(self, message: str, *, of_all: bool = False) -> None:
        super().__init__(message)
        self.of_all = of_all


class BrokenOff(PacsTrouble):
    """An answer ended before its end; what is missing of it may be asked for again."""


@dataclass(frozen=True)
class Pacs:
    """A PACS over DICOMweb. Every method raises `PacsTrouble`."""

    url: str
    access: Access = field(default_factory=Access)

    def series(self, query: ArchiveQuery, patients: Sequence[str]) -> Generator[WebSeries]:
        """Yield the series of a query, study by study."""
        asked = {"ModalitiesInStudy": query.modality} if query.modality else {}
        if query.since or query.until:
            asked["StudyDate"] = _range(query)
        for patient in patients or [""]:
            only = {"PatientID": patient} if patient else {}
            for study in self._search("studies", asked | only, _OF_STUDY):
                if _of_query(study, query, patient):
                    yield from self._series_of(study, query)

    def _series_of(self, study: DicomJson, query: ArchiveQuery) -> Generator[WebSeries]:
        uid = self._uid(study, "study")
        asked = {"Modality": query.modality} if query.modality else {}
        if query.body_part and not set(query.body_part) & set("*?"):  # a code: not all match it
            asked["BodyPartExamined"] = query.body_part
        for each in self._search(f"studies/{uid}/series", asked, _OF_SERIES):
            if _is_wanted(study, each, query):
                day = f"{_word(study, 'day')}{_word(study, 'time')}"
                number = _number(each, "files")
                yield WebSeries(
                    _word(study, "patient"), uid, self._uid(each, "series"), day, number
                )

    def files(self, series: WebSeries) -> tuple[str, ...]:
        """Return the UIDs of the files of a series."""
        path = f"studies/{series.study}/series/{series.series}/instances"
        found = [self._uid(each, "file") for each in self._search(path, {}, ("file",))]
        return tuple(dict.fromkeys(found))

    def fetch_series(self, series: WebSeries, into: Path) -> None:
        """Save the files of a series one by one, as they come: each appears when it is whole."""
        self._fetch(f"studies/{series.study}/series/{series.series}", into, most=LARGEST_SENT)

    def fetch_file(self, series: WebSeries, file: str, into: Path) -> None:
        """Save one file of a series."""
        path = f"studies/{series.study}/series/{series.series}/instances/{file}"
        self._fetch(path, into, most=LARGEST_FILE)

    def _fetch(self, path: str, into: Path, *, most: int) -> None:
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        with self._asked(path, {}, accept) as answer, _reading(self._host):
            stream = PartStream(boundary_of(answer.headers.get("Content-Type", "")))
            chunks = _chunks(answer, most, self.access.timeout)
            _save(stream.pieces(chunks), into)

    def _search(
        self, path: str, asked: Mapping[str, str], words: Sequence[str]
    ) -> Generator[DicomJson]:
        """Yield all answers, page by page, until a page brings nothing new."""
        fields = ",".join(_WORDS[word] for word in words)
        known: set[str] = set()
        while True:
            page = self._page(
                path, {**asked, "includefield": fields, "limit": str(PAGE)}, len(known)
            )
            texts = {json.dumps(each, sort_keys=True): each for each in page}
            new = {text: each for text, each in texts.items() if text not in known}
            yield from new.values()
            known |= set(new)
            if len(known) > MOST_ANSWERS:
                raise self._garbage(f"more than {MOST_ANSWERS} answers to one question")
            if not new or len(page) < PAGE:
                return

    def _page(self, path: str, asked: Mapping[str, str], offset: int) -> Sequence[DicomJson]:
        asked = {**asked, "offset": str(offset)} if offset else asked
        for attempt in range(self.access.retries + 1):
            try:
                with self._asked(path, asked, "application/dicom+json") as answer:
                    if answer.status_code == 204:
                        return ()
                    with _reading(self._host):
                        text = b"".join(_chunks(answer, LARGEST_PAGE, self.access.timeout))
                    return self._answers(text)
            except BrokenOff:
                if attempt == self.access.retries:
                    raise
                self._wait(attempt, None)
        raise AssertionError

    def _answers(self, text: bytes) -> Sequence[DicomJson]:
        try:
            found: object = json.loads(text) if text.strip() else []
        except (ValueError, RecursionError):
            raise self._garbage("no JSON") from None
        if not isinstance(found, list) or not all(isinstance(e, dict) for e in cast(Any, found)):
            raise self._garbage("no list of answers")
        return cast(Sequence[DicomJson], found)

    def _uid(self, answer: DicomJson, word: str) -> str:
        """Return a UID that can stand in an address: digits and dots, or the answer is none."""
        uid = _word(answer, word)
        if len(uid) > 64 or not _UID.fullmatch(uid):
            raise self._garbage(f"an identifier {uid[:80]!a} that is no UID")
        return uid

    @contextmanager
    def _asked(
        self, path: str, asked: Mapping[str, str], accept: str
    ) -> Generator[requests.Response]:
        with closing(self._answer(path, asked, accept)) as answer:
            yield answer

    def _answer(self, path: str, asked: Mapping[str, str], accept: str) -> requests.Response:
        """Return an answer whose headers are good; repeat the request where that may help."""
        url = f"{self.url.rstrip('/')}/{path}"
        for attempt in range(self.access.retries + 1):
            last = attempt == self.access.retries
            try:
                answer = self._get(url, asked, accept)
            except Timeout:
                if last:
                    raise PacsTrouble(self._late) from None
                self._wait(attempt, None)
                continue
            except OSError as error:  # a certificate's file that is none is no RequestException
                if last or not isinstance(error, RequestException) or isinstance(error, SSLError):
                    raise self._unreachable(error) from None
                self._wait(attempt, None)
                continue
            if last or answer.status_code not in _FOR_NOW:
                return self._checked(answer)
            self._wait(attempt, answer.headers.get("Retry-After"))
            answer.close()
        raise AssertionError

    def _get(self, url: str, asked: Mapping[str, str], accept: str) -> requests.Response:
        """Follow redirects on the same host alone: the token is for no other."""
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        for _ in range(_REDIRECTS + 1):
            answer = self._session.get(
                url,
                params=dict(asked),
                headers=headers,
                stream=True,
                timeout=self.access.timeout,
                allow_redirects=False,
            )
            if not answer.is_redirect:
                return answer
            answer.close()
            target = urljoin(url, answer.headers["Location"])
            if _origin(target) != _origin(self.url):
                raise PacsTrouble(
                    f"{self._host}: sends on to another address, {_shown(target)}; the token "
                    "goes to no other: if it is right, write it as archive.url",
                    of_all=True,
                )
            url, asked = target, {}
        raise self._garbage("more than 3 redirects")

    def _checked(self, answer: requests.Response) -> requests.Response:
        code, kind = answer.status_code, answer.headers.get("Content-Encoding", "identity")
        if code in (200, 204, 206) and kind.lower() == "identity":
            return answer
        answer.close()
        if code in (401, 403):
            raise PacsTrouble(
                f"{self._host}: lets this site not in (status {code}); is the token of "
                "archive.access right, and has it not ended?",
                of_all=True,
            )
        if code == 404:
            raise PacsTrouble(
                f"{self._host}: has no such address or no longer has this series (status 404); "
                "archive.url must be that of DICOMweb, for example https://pacs/dicom-web"
            )
        if code < 400:
            raise self._garbage(f"status {code}, content {kind[:40]!a}")
        raise PacsTrouble(f"{self._host}: could not answer (status {code}); try again later")

    def _wait(self, attempt: int, wished: str | None) -> None:
        seconds = self.access.pause * 2**attempt
        if wished and wished.isdecimal() and len(wished) < 6:
            seconds = max(seconds, float(wished))
        time.sleep(min(seconds, _LONGEST_WAIT))

    @cached_property
    def _session(self) -> requests.Session:
        access, session = self.access, requests.Session()
        session.trust_env = False  # no .netrc, no proxy: what goes where stands in the site file
        session.headers["User-Agent"] = "grandrounds"
        if authorization := access.authorization():
            session.headers["Authorization"] = authorization
        for path in (access.authority, access.certificate, access.key):
            if path and not path.is_file():
                raise BadSite(f"{path}: there is no such file; archive.access names it")
        if access.authority:
            session.verify = str(access.authority)
        if access.certificate:
            pair = (str(access.certificate), str(access.key)) if access.key else None
            session.cert = pair or str(access.certificate)
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it would log addresses with IDs
        return session

    @property
    def _host(self) -> str:
        return _shown(self.url)

    @property
    def _late(self) -> str:
        return (
            f"{self._host}: did not answer within {self.access.timeout:g} seconds; run the command "
            "again when it does, for what came is kept"
        )

    def _unreachable(self, error: OSError) -> PacsTrouble:
        if not isinstance(error, RequestException) or isinstance(error, SSLError):
            return PacsTrouble(
                f"{self._host}: its TLS certificate is refused, or it refuses this site's "
                f"({_why(error)}); archive.access.authority is the file of the authority's "
                "certificate, archive.access.certificate and key are this site's",
                of_all=True,
            )
        if isinstance(error, Unreachable):
            return PacsTrouble(
                f"{self._host}: cannot be reached, or ended the connection ({_why(error)}); is the "
                "PACS running, and archive.url right? What came is kept",
                of_all=True,
            )
        return self._garbage(type(error).__name__)

    def _garbage(self, what: str) -> PacsTrouble:
        return _garbage(self._host, what)


def _garbage(host: str, what: str) -> PacsTrouble:
    return PacsTrouble(f"{host}: answers with {what}, which is no DICOMweb; is archive.url right?")


def _chunks(answer: requests.Response, most: int, timeout: float) -> Generator[bytes]:
    """Yield an answer's bytes, no more than `most` and no slower than is bearable."""
    begun, length = time.monotonic(), 0
    while chunk := answer.raw.read1(_CHUNK):
        length += len(chunk)
        took = time.monotonic() - begun
        if length > most:
            raise BadAnswer(f"more than {most} bytes")
        if took > timeout and length < SLOWEST * (took - timeout):
            raise BadAnswer(f"fewer than {SLOWEST} bytes a second")
        yield chunk


@contextmanager
def _reading(host: str) -> Generator[None]:
    """Turn what breaks while an answer is read into a sentence."""
    try:
        yield
    except BadAnswer as error:
        if error.early:
            raise BrokenOff(f"{host}: sent {error}; what came is kept") from None
        raise _garbage(host, str(error)) from None
    except (HTTPError, RequestException) as error:
        raise BrokenOff(
            f"{host}: broke off in the middle of an answer ({_why(error)}); what came is kept"
        ) from None


def _save(pieces: Generator[tuple[int, bytes | None]], into: Path) -> None:
    """Write parts as files that appear whole, beside what is there already."""
    taken, half = _next_number(into), into / ".half"
    file = half.open("wb")
    try:
        for number, piece in pieces:
            if piece is None:
                file.flush()
                os.fsync(file.fileno())
                file.close()
                half.replace(into / f"part-{taken + number:06d}.dcm")
                file = half.open("wb")
            elif file.tell() + len(piece) > LARGEST_FILE:
                raise BadAnswer(f"a file of more than {LARGEST_FILE} bytes")
            else:
                file.write(piece)
    finally:
        file.close()
        half.unlink(missing_ok=True)


def _next_number(into: Path) -> int:
    taken = [int(path.stem.removeprefix("part-")) for path in into.glob("part-*.dcm")]
    return max(taken, default=-1) + 1


def _word(answer: DicomJson, word: str) -> str:
    """Return a value of DICOM's JSON as text; empty where there is none that is one."""
    element: object = answer.get(_WORDS[word])
    values: object = cast(Any, element).get("Value") if isinstance(element, dict) else None
    first: object = cast(Any, values)[0] if isinstance(values, list) and values else ""
    return str(first).strip() if isinstance(first, str | int | float) else ""


def _number(answer: DicomJson, word: str) -> int:
    text = _word(answer, word)
    return int(text) if text.isdecimal() and len(text) < 9 else 0


def _range(query: ArchiveQuery) -> str:
    first, last = (f"{day:%Y%m%d}" if day else "" for day in (query.since, query.until))
    return f"{first}-{last}"


def _of_query(study: DicomJson, query: ArchiveQuery, patient: str) -> bool:
    """Tell whether a study was asked for: a PACS may ignore a condition."""
    day, (first, last) = _word(study, "day"), _range(query).split("-")
    dated = bool(day) or not (first or last)
    in_time = dated and (not first or first <= day) and (not last or day <= last)
    return in_time and (not patient or _word(study, "patient") == patient)


def _is_wanted(study: DicomJson, series: DicomJson, query: ArchiveQuery) -> bool:
    modality, part = _word(series, "modality"), _word(series, "body_part")
    if query.modality and modality and modality != query.modality:
        return False
    if query.body_part and part and not fits_pattern(part, query.body_part):
        return False
    texts = (_word(series, "description"), _word(study, "study_description"))
    return not query.description or any(fits_pattern(text, query.description) for text in texts)


def fits_pattern(text: str, pattern: str) -> bool:
    """Tell whether a text is as a pattern with * and ? says; capitals do not matter."""
    return fnmatchcase(text.lower(), pattern.lower().replace("[", "[[]"))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        port = None
    return parts.scheme, parts.hostname, port


def _shown(url: str) -> str:
    """Return who is asked, without the path, in which a patient may be named."""
    scheme, host, port = _origin(url)
    return ascii(f"{scheme}://{host}:{port}")[1:-1]


def _why(error: BaseException) -> str:
    """Return the innermost reason of an error, in the system's or TLS' words."""
    found: BaseException = error
    for _ in range(_NESTED):
        deeper = _below(found)
        if deeper is None:
            break
        found = deeper
    if isinstance(found, ssl.SSLCertVerificationError):
        return found.verify_message
    if isinstance(found, OSError) and found.strerror:
        return found.strerror
    return type(found).__name__


def _below(error: BaseException) -> BaseException | None:
    inner = [getattr(error, "reason", None), error.__cause__, *error.args]
    return next((e for e in inner if isinstance(e, BaseException) and e is not error), None)
