"""Makes matplotlib's SVG part of a page: small, in the page's fonts and colours.

The page allows no inline style, so what figures share becomes classes. Known colours become
CSS variables, which a dark theme changes.
"""

import re
from collections.abc import Mapping
from xml.etree import ElementTree

import markupsafe

# What matplotlib draws with; all else (metadata, its style sheet) is left out.
_TAGS = {"svg", "g", "defs", "path", "use", "text", "tspan", "clipPath", "rect", "image"}
_ATTRIBUTES = {"d", "x", "y", "width", "height", "transform", "clip-path", "href", "points"}
_SHORT = 2  # decimals of a coordinate, in points: a hundredth of a pixel and less
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_NO_TURN = re.compile(r"\s*rotate\(-?0 [^)]*\)")
_EMPTY_GROUP = re.compile(r"<g></g>")


class StyleSheet:
  """Collects the styles of a page's figures; equal ones are one class."""

  def __init__(self, variables: Mapping[str, str]):
    """Starts without any; `variables` has the CSS value of each known colour."""
    self._variables = variables
    self._classes: dict[str, str] = {}  # declarations -> name

  def class_of(self, style: str) -> str:
    """Returns the class of CSS declarations as matplotlib writes them."""
    parts = []
    for declaration in filter(None, map(str.strip, style.split(";"))):
      name, _, value = map(str.strip, declaration.partition(":"))
      if name == "font-family":
        continue
      if name == "font":  # style, weight, size and families at once
        sizes = re.findall(r"(?:^|\s)(bold|[6-9]00|[\d.]+px)(?=\s)", value)
        for size in sizes:
          parts.append(f"font-{'size' if size.endswith('px') else 'weight'}:{size}")
        continue
      parts.append(f"{name}:{self._variables.get(value, _rounded(value))}")
    text = ";".join(parts)
    return self._classes.setdefault(text, f"f{len(self._classes)}") if text else ""

  @property
  def css(self) -> str:
    """Returns the rules of all classes."""
    return "\n".join(f".{name}{{{text}}}" for text, name in self._classes.items())


def inline(svg: bytes, *, name: str, alt: str, styles: StyleSheet) -> markupsafe.Markup:
  """Returns an element for a page from a file by matplotlib.

  Args:
    svg: the file.
    name: a prefix that makes its ids unique on the page.
    alt: what it shows.
    styles: gets its styles.
  """
  root = ElementTree.fromstring(svg)
  used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", svg.decode()))
  ids = {
    text: f"{name}-{number}"
    for number, text in enumerate(sorted({one or other for one, other in used}))
  }
  width, height = (round(float(root.get(key).removesuffix("pt")) * 4 / 3) for key in _SIZE)
  body = "".join(_element(child, ids, styles) for child in root)
  while (shorter := _EMPTY_GROUP.sub("", body)) != body:
    body = shorter
  return markupsafe.Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{}" viewBox="{}" '
    'width="{}" height="{}"{}>{}</svg>'
  ).format(
    alt,
    root.get("viewBox"),
    width,
    height,
    markupsafe.Markup(f' class="{_class(width)}"'),
    markupsafe.Markup(body),
  )


_SIZE = ("width", "height")
_WIDE, _NARROW = 740, 460  # CSS pixels


def _class(width: int) -> str:
  """Returns the class by which a page keeps a figure from being shrunk on a phone."""
  return "wide" if width > _WIDE else "middle" if width > _NARROW else "narrow"


def _element(
  element: ElementTree.Element, ids: Mapping[str, str], styles: StyleSheet
) -> str:
  tag = element.tag.rpartition("}")[2]
  if tag not in _TAGS:
    return ""
  attributes = {}
  for key, value in element.attrib.items():
    key = key.rpartition("}")[2]
    if key == "id" and value in ids:
      attributes["id"] = ids[value]
    elif key == "style" and (made := styles.class_of(value)):
      attributes["class"] = made
    elif key in _ATTRIBUTES:
      attributes[key] = _value(key, value, ids)
  attributes = {key: value for key, value in attributes.items() if value}
  head = "".join(f' {key}="{markupsafe.escape(v)}"' for key, v in attributes.items())
  text = str(markupsafe.escape(element.text)) if tag in ("text", "tspan") else ""
  inside = "".join(_element(child, ids, styles) for child in element)
  if tag == "g" and not head:  # one that only grouped
    return inside
  return f"<{tag}{head}>{text}{inside}</{tag}>"


def _value(key: str, value: str, ids: Mapping[str, str]) -> str:
  if key == "href":
    return f"#{ids[value[1:]]}" if value[0] == "#" else value
  if key == "clip-path":
    return f"url(#{ids[value[5:-1]]})"
  if key == "transform":
    value = _NO_TURN.sub("", value)
  value = _rounded(" ".join(value.split()))
  if key == "d":
    value = re.sub(r" ?([MLCQz]) ?", r"\1", value)
  return value


def _rounded(text: str) -> str:
  def shorter(match: re.Match) -> str:
    number = f"{float(match[0]):.{_SHORT}f}".rstrip("0").rstrip(".")
    return "0" if number == "-0" else number

  return _NUMBER.sub(shorter, text)
