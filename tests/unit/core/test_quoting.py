"""What a study's author may write into a card or a table, and what a reader then sees."""

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from grandrounds.core.quoting import Markdown, code_span, for_markdown, original, table_text

PLAIN = ["alder", "site_1", "T1w->T2w", "batch_size", "PSNR 24.31 dB", "-1.5", "a - b",
         "[0.5, 0.9]", "FedAvg over swarm (mu 0.1)", 'privacy.kind = "none"', "50 %"]  # fmt: skip
SHOWN = {
    "a | b": r"a \| b",
    "a\n\n# b": "a # b",
    "# heading": r"\# heading",
    "> quoted": r"\> quoted",
    "- item": r"\- item",
    "1. item": r"1\. item",
    "---": r"--\-",
    "`code`": r"\`code\`",
    "*bold* __bold__ ~~gone~~": r"\*bold\* \_\_bold\_\_ \~\~gone\~\~",
    "<script>alert(1)</script>": "&lt;script>alert(1)&lt;/script>",
    "<!-- hidden": "&lt;!-- hidden",
    "&lt;b&gt;": "&amp;lt;b&amp;gt;",
    "AT&T": "AT&T",
    "[x](javascript:alert(1))": r"[x\](javascript:alert(1))",
    "[x]: y": r"[x\]: y",
    "[x][y]": r"[x\][y]",
    "see https://evil.example/a_b now": "see `https://evil.example/a_b` now",
    "![x](http://evil.example/p.png)": "`![x](http://evil.example/p.png)`",
    "WWW.evil.example": "`WWW.evil.example`",
    "mail a@evil.example": "mail `a@evil.example`",
    "a|http://b`c": r"a\|`http://b`\`c",
    "$x$": r"\$x\$",
    "back\\slash": r"back\\slash",
    "\u202egnp.exe\x1b[2J": "gnp.exe [2J",
}


@pytest.mark.parametrize("text", PLAIN)
def test_plain_words_stay_as_they_are(text: str):
    assert for_markdown(text) == text


@pytest.mark.parametrize("text", SHOWN)
def test_what_markdown_would_act_on_is_shown(text: str):
    assert for_markdown(text) == SHOWN[text]


def rendered(text: str) -> list[str]:
    """The tags that a renderer makes of a cell and a list item with this text; links included."""
    page = MarkdownIt("commonmark").enable("table")
    source = f"| a | b |\n|---|---|\n| {for_markdown(text)} | end |\n\n- {for_markdown(text)}\n"
    parts = [part for token in page.parse(source) for part in (token, *(token.children or []))]
    return [part.type for part in parts if part.type not in ("text", "code_inline", "inline")]


MEAN = st.text(st.sampled_from("ab1 |`*_[]()<>!#-+=:./@&;\\\n\t~$\"'w"), max_size=24)


@given(MEAN)
def test_no_text_changes_the_structure_of_a_card(text: str):
    assert rendered(text) == rendered("a" if for_markdown(text) else "")


def test_what_is_markdown_already_stays_and_a_digest_is_code():
    assert for_markdown(Markdown("*blank*")) == "*blank*"
    assert code_span("0a1b") == "`0a1b`"
    assert code_span("`<b>`") == r"\`&lt;b>\`"
    assert for_markdown(code_span("0a1b")) == "`0a1b`"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(0)", "'=HYPERLINK(0)"),
        ("+1+1", "'+1+1"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", '"\'\t=1"'),
        ("\r=1", '"\'\r=1"'),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("'=1", "''=1"),
        ("'alder", "'alder"),
        ("a;=1", '"a;=1"'),
        ('a "b", c', '"a ""b"", c"'),
        ("-1.5", "-1.5"),
        ("-1e-05", "-1e-05"),
        ("-inf", "-inf"),
        (-1.5, "-1.5"),
        (None, ""),
        (True, "True"),
    ],
)
def test_text_that_a_spreadsheet_would_compute_has_an_apostrophe_and_a_number_none(
    text: object, cell: str
):
    assert table_text(["a", "b"], [{"a": text, "b": 1}]) == f"a,b\n{cell},1\n"


CELLS = st.text(st.sampled_from("ab1=+-@'\"\t\r\n,; \uff1d\u2028"), max_size=8)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=4))
def test_a_table_is_read_back_as_it_was(cells: list[tuple[str, str]]):
    text = table_text(["=a", "b"], [{"=a": a, "b": b} for a, b in cells])
    [head, *lines] = csv.reader(io.StringIO(text, newline=""))
    assert [original(cell) for cell in head] == ["=a", "b"]
    assert [tuple(map(original, line)) for line in lines] == cells
    texts = (cell for line in lines for cell in line if not re.fullmatch(r"\+\d+", cell))
    assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in texts)
