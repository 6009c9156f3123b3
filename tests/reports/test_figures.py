"""The look of all figures: colours that mean one thing, and files in two forms."""

import io
import re

import matplotlib.figure
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from ssil_jax.methods import METHODS
from ssil_jax.reports import figures, svg


def luminance(color):
  """Relative luminance as WCAG 2 defines it."""
  linear = [
    c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)
  ]
  return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_method_has_a_colour_of_its_own_and_keeps_it():
  titles = [method.title for method in METHODS.values()]
  colors = [figures.color_of(title) for title in titles]
  reserved = set(figures.COLORS.values())
  assert len(set(colors) | reserved) == len(titles) + len(reserved)
  other = figures.color_of("a method of my own")
  assert other == figures.color_of("a method of my own")
  assert other not in {*colors, *reserved}


@pytest.mark.parametrize(("dark", "page"), [(False, "#ffffff"), (True, "#12151a")])
def test_colours_are_seen_on_the_page(dark, page):
  for name, color in figures.theme(dark=dark).items():
    low, high = sorted([luminance(color), luminance(page)])
    contrast = (high + 0.05) / (low + 0.05)
    if name not in ("--line", "--on-heat"):
      assert contrast >= (4.5 if name in ("--ink", "--soft") else 3), name


def picture(text="a label"):
  figure = matplotlib.figure.Figure((3, 2), layout="constrained")
  ax = figure.subplots()
  ax.plot([0, 1], [0, 1], color=figures.COLORS["old"], label=text)
  ax.fill_between([0, 1], [0, 1], [1, 2], color=figures.COLORS["new"], alpha=0.25)
  ax.set_title(text)
  return figures.save(figure, name="x", title="X", caption="C", alt="A")


def test_a_figure_is_saved_as_svg_with_text_and_as_png():
  figure = picture()
  assert ">a label</text>" in figure.svg.decode()
  with Image.open(io.BytesIO(figure.png)) as image:
    assert image.size == (480, 320)
  assert picture() == figure  # byte for byte


def test_svg_in_a_page_has_themed_colours_and_no_ids_of_others():
  styles = svg.StyleSheet(figures.variables())
  figure = picture('<script>"&')
  one, two = (
    svg.inline(figure.svg, name=name, alt='"<b>', styles=styles) for name in ("one", "two")
  )
  assert 'aria-label="&#34;&lt;b&gt;"' in one
  assert "&lt;script&gt;" in one
  assert not re.search(r"<script|<style|style=|<!--|<metadata|xlink", one)
  for markup, name in ((one, "one"), (two, "two")):
    ids = set(re.findall(r' id="([^"]+)"', markup))
    assert ids
    assert all(text.startswith(f"{name}-") for text in ids)
    assert ids == set(re.findall(r'(?:href="#|url\(#)([^")]+)', markup))
  assert "stroke:var(--old)" in styles.css
  assert "fill:var(--new);fill-opacity:0.25" in styles.css
  assert "#" not in styles.css
  classes = set(re.findall(r'class="(f\d+)"', one))
  assert classes == {line.split("{")[0][1:] for line in styles.css.splitlines()}
