"""Which names can be folders, certificates and addresses anywhere, and which are refused."""

import pytest

from grandrounds.core.errors import BadSite, BadStudy
from grandrounds.core.names import (
    check_distinct,
    check_hash,
    check_host,
    check_name,
    check_site_name,
)
from tests.helpers.federation import NAME_RULE

NAMES = ("alder", "site-1", "ljubljana-15t", "A", "7", "v1.2_final", "a..b", "tiny-", "x" * 64)
PATHS = ("../startup", "..", ".", "a/b", "/etc", "a\\b", "~", "C:", "\\\\host\\share")
ODD = (
    "",
    " ",
    "a b",
    " a",
    "a ",
    "-x",
    "--out",
    ".hidden",
    "_x",
    "alder.",
    "a\n",
    "a\x00",
    "\x1b[2J",
)
LOOK_ALIKES = (
    "\u0430lder",
    "\uff41lder",
    "alder\u200b",
    "café",
    "cafe\u0301",
    "①",
    "site\u20101",
    "\u017fite",
)
DEVICES = ("con", "CON", "nul.txt", "Aux", "prn.", "com1", "LPT9.a.b", "COM0")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_returned_as_it_was(name: str):
    assert check_name(name, "run") == name


@pytest.mark.parametrize("name", [*PATHS, *ODD, *LOOK_ALIKES])
def test_a_path_an_odd_name_and_a_look_alike_are_refused(name: str):
    with pytest.raises(BadStudy) as told:
        check_name(name, "run")
    assert str(told.value) == f"run {name!a}: {NAME_RULE}"


@pytest.mark.parametrize("name", DEVICES)
def test_names_that_windows_keeps_are_refused(name: str):
    with pytest.raises(BadStudy, match=r"Windows keeps this name|does not end with"):
        check_name(name, "run")


def test_a_name_has_at_most_64_characters_and_a_message_shows_the_first():
    with pytest.raises(BadStudy) as told:
        check_name("x" * 5000, "study name")
    assert str(told.value) == (
        f"study name '{'x' * 79}... has 5000 characters; a name has at most 64"
    )


@pytest.mark.parametrize("name", [None, 7, ["alder"], {"a": "b"}, b"alder"])
def test_what_is_no_text_is_no_name(name: object):
    with pytest.raises(BadStudy, match="it must be a name, in quotes"):
        check_name(name, "run")


def test_the_caller_chooses_the_error():
    with pytest.raises(ValueError, match=r"site '\.\./x': a name has"):
        check_name("../x", "site", ValueError)


@pytest.mark.parametrize("name", ["server", "Server", "admin", "ADMIN", "pooled"])
def test_words_that_stand_for_others_are_no_site(name: str):
    with pytest.raises(BadSite, match=f"site '{name}': is kept for .+; choose another"):
        check_site_name(name, "site", BadSite)


def test_a_site_has_no_dot_which_parts_a_site_from_its_jobs():
    with pytest.raises(BadStudy, match=r"site 'st\.mary': a site's name has no '\.'; write '-' or"):
        check_site_name("st.mary")
    assert check_site_name("st-mary_2") == "st-mary_2"


def test_names_differ_in_more_than_case():
    check_distinct(["alder", "birch", "alder"], "sites")
    with pytest.raises(BadStudy, match="sites 'alder' and 'ALDER' differ in case alone"):
        check_distinct(["alder", "birch", "ALDER"], "sites")


@pytest.mark.parametrize(
    "value",
    ["", "ab", "A" * 64, "g" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", "../" + "a" * 61, 7],
)
def test_a_hash_is_64_digits_and_nothing_else(value: object):
    assert check_hash("0123456789abcdef" * 4, "study")
    with pytest.raises(BadSite, match="it must be a SHA-256, 64 digits of 0-9 and a-f"):
        check_hash(value, "study", BadSite)


@pytest.mark.parametrize(
    "host",
    ["localhost", "fl.example.org", "FL-1.Example.org", "192.0.2.10", "127.0.0.1",
     "xn--bcher-kva.ch", "1and1.com", "a" * 63 + ".org", ".".join(["a" * 63] * 3) + ".abc"],
)  # fmt: skip
def test_a_server_is_a_host_name_or_an_ipv4_address(host: str):
    assert check_host(host, "--server") == host


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("::1", "takes no IPv6 address"),
        ("[2001:db8::1]", "takes no IPv6 address"),
        ("fe80::1%eth0", "takes no IPv6 address"),
        ("0.0.0.0", "no site can reach the server by this address"),
        ("224.0.0.1", "no site can reach the server by this address"),
        ("fl.example.org:8002", "its port with --port"),
        ("https://fl.example.org", "without scheme and path"),
        ("10.0.0.256", "four numbers from 0 to 255"),
        ("10.0.0", "four numbers from 0 to 255"),
        ("10.0.0.010", "four numbers from 0 to 255"),
        ("", "a host name has letters"),
        ("fl.example.org.", "a host name has letters"),
        ("fl..example.org", "a host name has letters"),
        ("-fl.example.org", "a host name has letters"),
        ("fl_1.example.org", "a host name has letters"),
        ("klinik-köln.de", "a host name has letters"),
        ("fl.example.org\n", "a host name has letters"),
        ("a" * 64 + ".org", "a host name has letters"),
        (".".join(["a" * 63] * 4), "a host name has letters"),
    ],
)  # fmt: skip
def test_any_other_server_is_refused_with_what_would_be_right(host: str, why: str):
    with pytest.raises(BadStudy, match=why) as told:
        check_host(host, "--server")
    assert str(told.value).startswith("--server '")
