"""Whatever goes wrong at a site, what leaves it holds nothing of its files, cells and patients."""

import ast
import json
import logging
import unicodedata
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import grandrounds
from grandrounds.core.errors import (
    BadFolder,
    BadImage,
    BadInput,
    BadSite,
    DiskFailed,
    GrandRoundsError,
)
from grandrounds.core.events import SiteReady
from grandrounds.core.failures import Disclosure
from grandrounds.core.messages import CaseScore, Reply, Request, decode, encode
from grandrounds.core.sentence import Name, phrase
from grandrounds.data.elements import Elements
from grandrounds.engines.envelope import READY, ReplyEnvelope, RequestEnvelope, pack, unpack
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.runs.site_data import open_site
from grandrounds.site.site import Site
from grandrounds.study.site_file import SiteFile
from grandrounds.study.study import SiteSpec, Study
from tests.helpers.remote_sites import ORDER, nowhere, odd, sites_of

SECRETS = (
    "/befunde/MRT von Müller, Jürgen (1961)/sub-07 [copy].nii.gz",
    r"\\ward-3\Röntgen\SUB-07",
    "Ольга Иванова",
    "山田 太郎",
    "ERIKA mustermann",
    "Zoë\u0301 d'Arc; born 3.4.1961",
    "../../home/oncology/København.tsv",
)
LETTERS = st.characters(categories=("L", "M", "N"), min_codepoint=0x80)
PIECE = st.text(LETTERS, min_size=4, max_size=12) | st.from_regex(r"Xq[a-z]{5,9}", fullmatch=True)
SEPARATOR = st.sampled_from(["/", "\\", " ", "_", "-", ", ", " (", "] [", ":", "\n"])


@st.composite
def secrets(draw: st.DrawFn) -> str:
    """A path or name of some pieces, none of which is a word of the program."""
    pieces = draw(st.lists(PIECE, min_size=1, max_size=4))
    return "".join(piece + draw(SEPARATOR) for piece in pieces)


KINDS: tuple[type[Exception], ...] = (
    ValueError, RuntimeError, KeyError, OSError, MemoryError, FloatingPointError,
    UnicodeError, BadImage, BadSite, BadFolder, DiskFailed,
)  # fmt: skip


@st.composite
def errors(draw: st.DrawFn, secret: str) -> Exception:
    """An error of any kind that holds the secret wherever it can."""
    kind = draw(st.sampled_from(KINDS))
    words = draw(st.sampled_from(["{}", "{}: is odd", "cannot read '{}'", "no {} (errno 2)"]))
    error = kind(words.format(secret))
    if kind is OSError:
        error = OSError(draw(st.sampled_from([2, 13, 28, 27])), secret, secret, None, f"{secret}.b")
    if draw(st.booleans()):
        error.add_note(f"it happened in {secret}")
    if draw(st.booleans()):
        error.__cause__ = draw(st.sampled_from([ValueError, OSError]))(secret)
    if draw(st.booleans()):
        error.__context__ = KeyError(secret)
    if draw(st.booleans()):
        error = type(secret, (kind,), {"__module__": "builtins"})(secret)
    if draw(st.booleans()):
        error.safe = secret  # type: ignore[attr-defined]  # pyright: ignore
    if draw(st.booleans()):
        error = raised_in_a_file_of_this_name(error, secret)
    return error


def raised_in_a_file_of_this_name(error: Exception, secret: str) -> Exception:
    """The error with a trace that ends in code which was made up from a secret."""
    code = compile("raise error", f"/x/{secret}.py", "exec").replace(co_name=secret)
    try:
        exec(code, {"error": error})
    except Exception as caught:
        return caught
    raise AssertionError


def pieces_of(secret: str) -> Iterator[str]:
    """The words of a secret, also as they lie between separators."""
    yield secret.strip()
    word = ""
    for letter in secret + " ":
        if letter.isalnum() or unicodedata.category(letter).startswith("M"):
            word += letter
            continue
        if len(word) >= 4:
            yield word
        word = ""


def forms_of(piece: str) -> Iterator[str]:
    """A piece in each spelling in which it could be read."""
    for normal in ("NFC", "NFD", "NFKC", "NFKD"):
        text = unicodedata.normalize(normal, piece)
        for cased in (text, text.lower(), text.upper(), text.casefold(), text.title()):
            yield cased
            yield quote(cased)
            yield quote_plus(cased)
            yield repr(cased)[1:-1]
            yield ascii(cased)[1:-1]
            yield json.dumps(cased)[1:-1]


def read(body: bytes) -> set[str]:
    """The bytes that left, as an attentive reader has them before the eyes."""
    text = body.decode("utf-8", "replace")
    undone = json.loads(text) if text.startswith("{") else text
    plain = json.dumps(undone, ensure_ascii=False) if isinstance(undone, dict) else text
    seen = {text, plain}
    for normal in ("NFC", "NFD", "NFKC", "NFKD"):
        seen |= {unicodedata.normalize(normal, each) for each in (text, plain)}
    return seen | {each.casefold() for each in seen}


def leaks(body: bytes, secret: str) -> list[str]:
    """What of a secret can be read in the bytes that left."""
    seen = read(body)
    return [
        form
        for piece in pieces_of(secret)
        for form in forms_of(piece)
        if any(form in text for text in seen)
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return sites_of(tmp_path_factory.mktemp("sites"))["alder"]


@contextmanager
def agent_of(site: Site, act: Callable[[str, Request], Reply]) -> Generator[SiteAgent, None, None]:
    @contextmanager
    def host() -> Generator[tuple[InProcessEngine, bytes], None, None]:
        yield InProcessEngine((odd(site, act),), lambda request, reply: None), b""

    agent = SiteAgent(host(), nowhere, site.disclosure)
    try:
        yield agent
    finally:
        agent.close()


def sent(site: Site, act: Callable[[str, Request], Reply]) -> bytes:
    """The body of what leaves a site that acts so."""
    ask = RequestEnvelope(number=READY + 1, wait=10.0, body=encode(ORDER))
    with agent_of(site, act) as agent:
        return unpack(agent.answer(pack(ask)), ReplyEnvelope).body


def opened(site: Site, error: Exception) -> bytes:
    """The body of what leaves a site that cannot open."""

    @contextmanager
    def host() -> Generator[tuple[InProcessEngine, bytes], None, None]:
        raise error
        yield

    agent = SiteAgent(host(), nowhere, site.disclosure)
    body = unpack(agent.answer(pack(RequestEnvelope(number=READY, wait=10.0))), ReplyEnvelope).body
    agent.close()
    return body


def raising(error: Exception) -> Callable[[str, Request], Reply]:
    def act(name: str, request: Request) -> Reply:
        raise error

    return act


OFTEN = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.slow
@OFTEN
@given(data=st.data())
def test_nothing_of_a_secret_leaves_with_a_failure(site: Site, data: st.DataObject):
    secret = data.draw(secrets())
    error = data.draw(errors(secret))
    assert leaks(sent(site, raising(error)), secret) == []


@pytest.mark.slow
@OFTEN
@given(data=st.data())
def test_nothing_of_a_secret_leaves_a_site_that_cannot_open(site: Site, data: st.DataObject):
    secret = data.draw(secrets())
    error = data.draw(errors(secret))
    assert leaks(opened(site, error), secret) == []


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("kind", KINDS)
def test_names_in_every_alphabet_stay_at_the_site(site: Site, secret: str, kind: type[Exception]):
    error = kind(f"{secret}: cannot be read")
    assert leaks(sent(site, raising(error)), secret) == []
    assert leaks(opened(site, error), secret) == []


@pytest.mark.slow
@OFTEN
@given(secret=secrets(), kind=st.sampled_from([BadSite, BadImage, DiskFailed]))
def test_a_name_that_the_study_has_not_is_not_told(
    site: Site, secret: str, kind: type[GrandRoundsError]
):
    names = (Name("T1w"), Name(secret))
    error = kind(secret, safe=phrase("no {one} in {all}", one=Name(secret), all=names))
    assert leaks(sent(site, raising(error)), secret) == []
    assert leaks(opened(site, error), secret) == []


SCORE = CaseScore(site="alder", patient="p001", case="1/002", task="T1w->T2w", values={"psnr": 1.0})
SCORED = Reply(site="alder", round=1, digest="0f", metrics={"psnr": 1.0}, scores=(SCORE,))
COUNTS = SiteReady("alder", ("T1w->T2w",), {"train": 1}, {}, {}, {}, simulated=False)
TEXT = "sub-Müller_T1w.nii.gz"
ODD_REPLIES = {
    "patient": replace(SCORED, scores=(replace(SCORE, patient=TEXT),)),
    "patient with more": replace(SCORED, scores=(replace(SCORE, patient="p001 Müller"),)),
    "case": replace(SCORED, scores=(replace(SCORE, case=TEXT),)),
    "case with a line": replace(SCORED, scores=(replace(SCORE, case="1/001\n"),)),
    "site of a case": replace(SCORED, scores=(replace(SCORE, site=TEXT),)),
    "task of a case": replace(SCORED, scores=(replace(SCORE, task=TEXT),)),
    "score": replace(SCORED, scores=(replace(SCORE, values={TEXT: 1.0}),)),
    "metric": replace(SCORED, metrics={TEXT: 1.0}),
    "digest": replace(SCORED, digest=TEXT),
    "shared": replace(SCORED, shared=TEXT),
    "site": replace(SCORED, site=TEXT),
    "ready task": replace(SCORED, ready=replace(COUNTS, tasks=(TEXT,))),
    "ready site": replace(SCORED, ready=replace(COUNTS, site=TEXT)),
    "ready cases": replace(SCORED, ready=replace(COUNTS, cases={TEXT: {}})),
    "ready split": replace(SCORED, ready=replace(COUNTS, slices={TEXT: 1})),
}


@pytest.mark.parametrize("text", ODD_REPLIES)
def test_a_reply_with_another_text_is_kept_back(site: Site, text: str):
    body = sent(site, lambda name, request: ODD_REPLIES[text])
    card = json.loads(body)
    assert card["error"] == "RunFailed"
    assert card["message"].startswith("its reply was kept back")
    assert leaks(body, TEXT.removesuffix("_T1w.nii.gz")) == []


def test_a_reply_of_names_numbers_and_pseudonyms_leaves(site: Site):
    metrics = dict.fromkeys(("psnr", "critics.T1w->T2w", "dice_T1w", "sensitivity_at_90"), 1.0)
    reply = replace(SCORED, ready=COUNTS, metrics=metrics)
    assert replace(decode(sent(site, lambda name, request: reply)), weights={}) == reply


ELEMENTS = Elements(("T1w", "T2w"), size=(32, 32), spacing=(1.0, 1.0), variables=("age",))
ANNA = "Änna Müster (1961)"
TABLES = {
    "cell": f"participant_id\tage\n{ANNA}\t{ANNA}\nb\t3\n",
    "columns": f"participant_id\t{ANNA}\n{ANNA}\t3\n",
    "row": f"participant_id\tage\n{ANNA}\n",
    "twice": f"participant_id\tage\n{ANNA}\t1\n{ANNA}\t2\n",
    "one": f"participant_id\tage\n{ANNA}\t1\n",
    "nobody": "participant_id\tage\nn/a\t1\n",
    "empty": "",
}


def told_of(path: Path, elements: Elements) -> str:
    """What others are told of data that cannot be opened."""
    study = Study("s", elements, (SiteSpec("oak", ("variables->age",)),))
    with pytest.raises(BadInput) as refused:
        open_site(study, study.site[0], SiteFile("oak", path, path.parent / "cache"))
    return Disclosure("oak", study.names).message(refused.value)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_cannot_be_read_tells_no_cell(tmp_path: Path, table: str):
    path = tmp_path / f"{ANNA}.tsv"
    path.write_text(TABLES[table], "utf-8")
    told = told_of(path, replace(ELEMENTS, contrasts=()))
    assert told.endswith("; see the log of site 'oak'")
    assert leaks(told.encode(), ANNA) == []


FOLDERS: dict[str, Mapping[str, bytes]] = {
    "misnamed": {f"{ANNA}.nii.gz": b""},
    "damaged": {"sub-Muster_T1w.nii.gz": b"Muster", "sub-Muster_T2w.nii": b"Muster"},
    "other contrast": {"sub-Muster_Muster.nii.gz": b""},
    "twice": {"sub-Muster_T1w.nii.gz": b"", "sub-Muster_T1w.nii": b""},
    "empty": {},
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_that_cannot_be_read_tells_no_name(tmp_path: Path, folder: str):
    path = tmp_path / ANNA
    path.mkdir()
    for name, content in FOLDERS[folder].items():
        (path / name).write_bytes(content)
    told = told_of(path, ELEMENTS)
    assert told.endswith("; see the log of site 'oak'")
    assert leaks(told.encode(), f"{ANNA} Muster") == []


def test_the_log_of_the_site_has_what_does_not_leave(site: Site, caplog: pytest.LogCaptureFixture):
    error = BadImage("/data/anna.nii.gz: is odd")
    for happen in (lambda: sent(site, raising(error)), lambda: opened(site, error)):
        caplog.clear()
        happen()
        [record] = caplog.records
        assert record.levelno == logging.ERROR
        assert "/data/anna.nii.gz: is odd" in caplog.text


def test_every_sentence_that_may_leave_is_written_in_the_program():
    """The type checker asks for it; this shows that none goes around it with a made-up text."""
    for path in Path(grandrounds.__file__).parent.rglob("*.py"):
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)) if "phrase(" in text else ():
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "phrase":
                made = [part for part in ast.walk(node.args[0]) if isinstance(part, ast.JoinedStr)]
                assert not made, f"{path}:{node.lineno}"
