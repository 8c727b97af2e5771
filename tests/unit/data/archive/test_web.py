"""A PACS that is asked over DICOMweb, on real sockets: what it does badly costs a sentence."""

import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from grandrounds.core.errors import BadSite
from grandrounds.data.archive import web
from grandrounds.data.archive.settings import Access, ArchiveQuery
from grandrounds.data.archive.web import Pacs, PacsTrouble, WebSeries
from tests.helpers.certificates import Authority, new_key
from tests.helpers.dicom_hospital import Visit, dicom_files
from tests.helpers.web_pacs import BOUNDARY, Handler, Misbehaviour, WebPacs, as_bytes, web_pacs

QUICK = Access(timeout=0.3, retries=1, pause=0.01)
VISIT = Visit()
Answer = Callable[[Handler, str], bool]


@pytest.fixture(scope="module")
def files():
    return [made for _, made in dicom_files(VISIT, ("T1w", "T2w"), size=8, slices=3)]


@pytest.fixture
def pacs(files) -> Iterator[WebPacs]:
    with web_pacs(files) as server:
        yield server


def series_of(server: WebPacs, access: Access = QUICK, **query: object) -> list[WebSeries]:
    return list(Pacs(server.url, access).series(ArchiveQuery(**query), ()))  # pyright: ignore


def test_the_series_of_a_study_are_found_with_whose_and_when_they_are(pacs: WebPacs):
    found = series_of(pacs)
    assert [each.series for each in found] == [VISIT.series("T1w"), VISIT.series("T2w")]
    assert {(each.patient, each.day, each.files) for each in found} == {
        (VISIT.patient, f"{VISIT.day}101500", 3)
    }


@pytest.mark.parametrize(
    ("query", "number"),
    [
        ({"since": date(2019, 6, 7), "until": date(2019, 6, 7)}, 2),
        ({"since": date(2019, 6, 8)}, 0),
        ({"until": date(2019, 6, 6)}, 0),
        ({"modality": "CT"}, 0),
        ({"description": "*ROCINANTE"}, 2),
        ({"description": "axial 1*"}, 1),
        ({"description": "*mr head*"}, 2),
        ({"description": "*[m]r head*"}, 0),
    ],
)
def test_a_condition_holds_although_the_pacs_does_not_know_it(pacs: WebPacs, query, number: int):
    assert len(series_of(pacs, **query)) == number


def test_another_patient_than_the_ones_asked_for_is_not_taken(pacs: WebPacs):
    assert not list(Pacs(pacs.url, QUICK).series(ArchiveQuery(), ("PID-1",)))
    assert "PatientID=PID-1" in pacs.asked[0]


def test_a_series_comes_file_by_file_with_the_very_bytes(pacs: WebPacs, files, tmp_path: Path):
    [first, _] = series_of(pacs)
    Pacs(pacs.url, QUICK).fetch_series(first, tmp_path)
    got = {path.read_bytes() for path in tmp_path.iterdir()}
    assert got == {as_bytes(made) for made in files[:3]}


def test_what_came_before_a_cut_is_kept_and_half_a_file_is_not(files, tmp_path: Path):
    with web_pacs(files, Misbehaviour(cut_after=2)) as server:
        [first, _] = series_of(server)
        with pytest.raises(PacsTrouble, match="ends in the middle of a part"):
            Pacs(server.url, QUICK).fetch_series(first, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "part-000000.dcm",
        "part-000001.dcm",
    ]


def answering(content: bytes, kind: str = "application/dicom+json", code: int = 200) -> Answer:
    def before(handler: Handler, path: str) -> bool:
        handler.answer(content, kind, code=code)
        return True

    return before


def uid_of(uid: str) -> bytes:
    return b'[{"0020000D": {"vr": "UI", "Value": ["%s"]}}]' % uid.encode()


def endless(handler: Handler, path: str) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/dicom+json")
    handler.end_headers()
    handler.wfile.write(b"[")
    try:
        while True:
            handler.wfile.write(b" " * 65536)
    except OSError:
        handler.close_connection = True
    return True


def compressed(handler: Handler, path: str) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


def always_new(handler: Handler, path: str) -> bool:
    """Answer every page with 500 answers that were not there before."""
    number = len(handler.pacs.asked)
    handler.json([{"00081030": {"Value": [f"{number} {n}"]}} for n in range(500)])
    return True


BAD = {
    "no JSON": (answering(b"<html>Welcome</html>"), "answers with no JSON, which is no DICOMweb"),
    "deep JSON": (answering(b"[" * 100_000), "answers with no JSON"),
    "an object": (answering(b'{"a": 1}'), "no list of answers"),
    "wrong token": (answering(b"", code=401), r"lets this site not in \(status 401\)"),
    "forbidden": (answering(b"", code=403), r"lets this site not in \(status 403\)"),
    "another program": (answering(b"", code=404), "has no such address"),
    "an error": (answering(b"", code=503), r"could not answer \(status 503\)"),
    "a path as UID": (answering(uid_of("../../etc/passwd")), "that is no UID"),
    "a number as UID": (answering(b'[{"0020000D": {"Value": [["1"]]}}]'), "that is no UID"),
    "a long UID": (answering(uid_of("1" * 65)), "that is no UID"),
    "an endless answer": (endless, "more than 1000000 bytes"),
    "a compressed answer": (compressed, "content 'gzip'"),
    "silence": (lambda handler, path: handler.drip(0.8) or True, "did not answer within 0.3 sec"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_pacs_that_answers_badly_costs_a_sentence(name: str, files, monkeypatch):
    monkeypatch.setattr(web, "LARGEST_PAGE", 1_000_000)
    answer, sentence = BAD[name]
    with (
        web_pacs(files, Misbehaviour(before=answer)) as server,
        pytest.raises(PacsTrouble, match=sentence) as refused,
    ):
        series_of(server)
    assert str(refused.value).count("\n") == 0


def test_a_list_without_end_is_cut_off(files, monkeypatch):
    monkeypatch.setattr(web, "MOST_ANSWERS", 2000)
    with (
        web_pacs(files, Misbehaviour(before=always_new)) as server,
        pytest.raises(PacsTrouble, match="more than 2000 answers to one question"),
    ):
        list(Pacs(server.url, QUICK).series(ArchiveQuery(), ("PID-1",)))


def dripping(handler: Handler, path: str) -> bool:
    if not path.endswith("/series") and "/series/" in path:
        handler.send_response(200)
        handler.send_header("Content-Type", f"multipart/related; boundary={BOUNDARY}")
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b"x")
                time.sleep(0.02)
        except OSError:
            pass
        handler.close_connection = True
        return True
    return False


def test_a_pacs_that_drips_is_given_up(files, tmp_path: Path):
    with web_pacs(files, Misbehaviour(before=dripping)) as server:
        [first, _] = series_of(server)
        with pytest.raises(PacsTrouble, match="fewer than 2048 bytes a second"):
            Pacs(server.url, QUICK).fetch_series(first, tmp_path)


def silent_in_mid_series(handler: Handler, path: str) -> bool:
    if not path.endswith("/series") and "/series/" in path:
        handler.send_response(200)
        handler.send_header("Content-Type", f"multipart/related; boundary={BOUNDARY}")
        handler.end_headers()
        handler.wfile.write(f"--{BOUNDARY}\r\n\r\nhalf".encode())
        handler.drip(0.7)
        return True
    return False


def test_a_timeout_in_mid_series_is_a_sentence_and_leaves_nothing(files, tmp_path: Path):
    with web_pacs(files, Misbehaviour(before=silent_in_mid_series)) as server:
        [first, _] = series_of(server)
        with pytest.raises(PacsTrouble, match="broke off in the middle of an answer"):
            Pacs(server.url, QUICK).fetch_series(first, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_never_ends_is_cut_off(files, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(web, "LARGEST_FILE", 500)
    with web_pacs(files) as server:
        [first, _] = series_of(server)
        with pytest.raises(PacsTrouble, match="a file of more than 500 bytes"):
            Pacs(server.url, QUICK).fetch_series(first, tmp_path)


def test_the_token_does_not_follow_to_another_host(files, tmp_path: Path):
    (tmp_path / "token").write_text("moulin\n")
    access = replace(QUICK, token_file=tmp_path / "token")
    with web_pacs(files) as stranger:
        other = stranger.url.replace("127.0.0.1", "localhost")

        def away(handler: Handler, path: str) -> bool:
            handler.redirect(f"{other}/studies")
            return True

        with (
            web_pacs(files, Misbehaviour(before=away)) as server,
            pytest.raises(PacsTrouble, match="sends on to another address") as refused,
        ):
            series_of(server, access)
        assert server.tokens == ["Bearer moulin"]
    assert not stranger.asked
    assert refused.value.of_all


def test_a_redirect_on_the_same_host_is_followed_with_the_token(files, tmp_path: Path):
    (tmp_path / "token").write_text("moulin\n")

    def moved(handler: Handler, path: str) -> bool:
        if path.startswith("/old"):
            handler.redirect(handler.path.replace("/old", "/dicom-web"))
            return True
        return False

    how = Misbehaviour(before=moved, token="Bearer moulin")
    with web_pacs(files, how) as server:
        server.url = server.url.replace("/dicom-web", "/old")
        assert len(series_of(server, replace(QUICK, token_file=tmp_path / "token"))) == 2


def test_a_redirect_in_a_circle_ends(files):
    def around(handler: Handler, path: str) -> bool:
        handler.redirect(handler.path)
        return True

    with (
        web_pacs(files, Misbehaviour(before=around)) as server,
        pytest.raises(PacsTrouble, match="more than 3 redirects"),
    ):
        series_of(server)


def test_a_request_that_failed_for_now_is_repeated(files):
    failures = iter([503, 429])

    def at_first(handler: Handler, path: str) -> bool:
        code = next(failures, None)
        if code:
            handler.answer(b"", code=code)
        return code is not None

    with web_pacs(files, Misbehaviour(before=at_first)) as server:
        assert len(series_of(server, replace(QUICK, retries=2))) == 2


@pytest.mark.parametrize("which", ["authority", "certificate"])
def test_a_certificate_s_file_that_is_none_is_a_sentence(which, files, authority, tmp_path: Path):
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    with web_pacs(files, tls=own_certificate(tmp_path, authority, "pacs")) as server:
        with pytest.raises(PacsTrouble, match="its TLS certificate is refused, or it refuses"):
            series_of(server, replace(QUICK, **{which: wrong}))
        with pytest.raises(BadSite, match=r"there is no such file; archive.access names it"):
            series_of(server, replace(QUICK, **{which: tmp_path / "none"}))


def test_a_pacs_in_trouble_is_not_asked_more_often_than_was_said(files):
    with web_pacs(files, Misbehaviour(before=answering(b"", code=500))) as server:
        with pytest.raises(PacsTrouble, match="status 500"):
            series_of(server, replace(QUICK, retries=3))
        assert len(server.asked) == 4


def test_a_pacs_that_is_down_is_said_to_be(files):
    with web_pacs(files) as server:
        pass
    with pytest.raises(PacsTrouble, match=r"cannot be reached.*Connection refused") as refused:
        series_of(server)
    assert refused.value.of_all


def own_certificate(folder: Path, authority: Authority, name: str) -> Path:
    """Write key and certificate of 127.0.0.1, in one file."""
    own, now = new_key(), datetime.now(UTC)
    called = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, authority.name)])
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(issuer, called, own.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    word = builder.add_extension(here, critical=False).sign(authority.key, SHA256())
    path = folder / f"{name}.pem"
    plain = (Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    path.write_bytes(own.private_bytes(*plain) + word.public_bytes(Encoding.PEM))
    return path


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("hospital-ca", new_key())


def test_a_certificate_of_an_unknown_authority_is_refused(files, authority, tmp_path: Path):
    with (
        web_pacs(files, tls=own_certificate(tmp_path, authority, "pacs")) as server,
        pytest.raises(PacsTrouble, match="its TLS certificate is refused") as refused,
    ):
        series_of(server)
    assert refused.value.of_all


def test_the_houses_own_authority_and_a_client_certificate_let_a_site_in(
    files, authority: Authority, tmp_path: Path, monkeypatch
):
    root = authority.root(tmp_path / "root.pem")
    pair = own_certificate(tmp_path, authority, "site")
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asking.load_verify_locations(root)
    asking.verify_mode = ssl.CERT_REQUIRED
    monkeypatch.setattr(ssl, "SSLContext", lambda protocol: asking)
    with web_pacs(files, tls=own_certificate(tmp_path, authority, "pacs")) as server:
        monkeypatch.undo()
        inside = replace(QUICK, authority=root, certificate=pair)
        assert len(series_of(server, inside)) == 2
        with pytest.raises(PacsTrouble):
            series_of(server, replace(inside, certificate=None))
