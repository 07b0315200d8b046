"""Text for terminals: escapes, and columns as wide as a terminal shows them."""

from aethernet.text import in_columns, printable, without_surrogates


def test_letters_of_all_scripts_and_spaces_are_kept():
    for name in ("été", "東京\u3000駅", "🖼", "a\u00a0b", "[red]", ":smile:"):
        assert printable(name) == name


def test_unprintable_characters_are_escaped():
    assert printable("a\nb\x1bé\u202e") == "a\\nb\\x1bé\\u202e"


def test_lines_are_cut():
    assert printable("x" * 5000) == "x" * 1000 + ".."


def test_undecodable_bytes_are_escaped():
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert without_surrogates(name) == "caf\\xe9"
    assert without_surrogates("\ud800") == "\\ud800"
    assert without_surrogates("two\nlines") == "two\nlines"


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_end_together():
    rows = [("name", "dB", "path"), ("2x", "9.5", "a"), ("bicubic", "33.68", "b")]
    assert in_columns(rows, right=[1]) == [
        "name        dB  path",
        "2x         9.5  a",
        "bicubic  33.68  b",
    ]


def test_wide_characters_take_two_cells():
    rows = [("東京", "1", "."), ("ab", "22", "."), ("e\u0301", "三", ".")]
    assert in_columns(rows, right=[1]) == [
        "東京   1  .",
        "ab    22  .",
        "e\u0301     三  .",
    ]


def test_control_characters_do_not_break_columns():
    assert in_columns([("a\tb", "c"), ("d\n", "e")]) == ["a\\tb  c", "d\\n   e"]


def test_no_rows():
    assert in_columns([]) == []
