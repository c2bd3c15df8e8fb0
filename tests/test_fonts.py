"""Labels of any script can be drawn, and what no font has is told and escaped."""

import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from openmvit import fonts

NAMES = ["café übergroß", "кошка", "Ωμέγα", "plain"]


def ink(text: str, size: int = 24) -> np.ndarray:
    """The pixels of a text."""
    picture = Image.new("L", (500, 60), 255)
    ImageDraw.Draw(picture).text((4, 4), text, fill=0, font=fonts.font(text, size))
    return np.asarray(picture)


@pytest.mark.parametrize("name", NAMES)
def test_letters_of_most_alphabets_need_no_other_font(name):
    assert fonts.drawable(name) == name
    # A missing letter is a box: letters that differ must not look alike.
    letters = sorted(set(name) - {" "})
    pictures = {ink(letter).tobytes() for letter in letters}
    assert len(pictures) == len(letters)


def test_chinese_is_drawn_where_a_font_has_it_and_escaped_where_none_has(monkeypatch, capsys):
    name = "猫和狗"
    drawn = fonts.drawable(name)
    if drawn == name:
        assert len({ink(letter).tobytes() for letter in name}) == 3
    monkeypatch.setattr(fonts, "_installed", lambda: ())
    monkeypatch.setattr(fonts, "_said", set())
    fonts._system_font.cache_clear()
    assert fonts.drawable(name) == r"\u732b\u548c\u72d7"
    assert fonts.drawable(name)
    said = capsys.readouterr().err
    assert said.count("No installed font has the letters") == (1 if drawn == name else said.count("letters"))
    fonts._system_font.cache_clear()


def test_control_characters_never_reach_a_drawing():
    assert fonts.drawable("a\nb\x1b[31m\ud800") == r"a\nb\x1b[31m\ud800"
    assert re.fullmatch(r"[ -~]+", fonts.drawable("tab\tend"))


def test_plots_name_a_font_for_every_label():
    families = fonts.families(NAMES)
    assert families[0] == "DejaVu Sans"
