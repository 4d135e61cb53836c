"""Nothing that a guest or user is called can move a terminal's cursor."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.cli.failures import CommandFailed
from manager.cli.text import document, moment, safe, seconds, size

ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(ANY_TEXT)
def test_safe_text_is_one_visible_line(text: str) -> None:
    shown = safe(text)
    assert all(unicodedata.category(char)[0] != "C" and char not in "\u2028\u2029" for char in shown)
    shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("web1", "web1", id="plain"),
        pytest.param("Büro 東京", "Büro 東京", id="letters of other scripts stay"),
        pytest.param("a\x1b[2Jb", "a\\x1b[2Jb", id="escape sequence"),
        pytest.param("a\nready", "a\\nready", id="line break"),
        pytest.param("a\u202eb", "a\\u202eb", id="direction override"),
        pytest.param("a\x9b31mb", "a\\x9b31mb", id="eight-bit control sequence"),
    ],
)
def test_unsafe_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert safe(text) == shown


@given(st.recursive(ANY_TEXT, lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner)))
def test_a_document_is_plain_ascii_and_means_the_same(value: object) -> None:
    text = document(value)
    assert text.isascii()
    assert all(char.isprintable() or char == "\n" for char in text)
    assert json.loads(text) == value


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, ""), ("2026-11-23T06:40:29.123456Z", "2026-11-23 06:40:29"), ("soon\x1b", "soon\\x1b")],
)
def test_times_are_read_in_utc(value: object, shown: str) -> None:
    assert moment(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, ""), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 1024**4, "5 TiB")]
)
def test_sizes_are_shown_in_the_largest_unit(value: object, shown: str) -> None:
    assert size(value) == shown


@pytest.mark.parametrize(
    ("text", "number"), [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86400), ("0", 0)]
)
def test_durations(text: str, number: int) -> None:
    assert seconds(text) == number


@pytest.mark.parametrize("text", ["", "h", "1.5h", "-1", "1w", "2h30m", " 5", "٣", "1234567890"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(CommandFailed, match="not a duration"):
        seconds(text)
