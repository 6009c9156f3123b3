"""Which classes are learnt, and in which order."""

import numpy as np
import pytest
from folders import config_of

from ssil_jax.data.classes import choose_classes
from ssil_jax.errors import ConfigError

NAMES = ("ant", "bee", "cat", "dog", "élan")
ODD = ("next\u0085line", " spaces ", "two\u2028lines")


@pytest.fixture
def write(tmp_path):
  """Writes names, one a line; returns the file."""

  def write(*names, end="\n"):
    path = tmp_path / "names.txt"
    path.write_bytes("".join(name + end for name in names).encode())
    return str(path)

  return write


def chosen(**values):
  return [NAMES[place] for place in choose_classes(NAMES, config_of(**values))]


def test_without_files_a_seed_tells_the_order():
  order = np.random.RandomState(1993).permutation(5)
  assert chosen(class_order_seed=1993) == [NAMES[place] for place in order]
  assert chosen(class_order_seed=1993, num_classes=2) == [NAMES[p] for p in order[:2]]


def test_a_file_tells_the_order(write):
  order = ["dog", "élan", "ant", "cat", "bee"]
  assert chosen(class_order=write(*order)) == order
  assert chosen(class_order=write("", *order, "  ", end=" \r\n")) == order
  assert chosen(class_order=write("\ufeffdog", *order[1:])) == order  # as Windows writes
  assert chosen(class_order=write(*order), num_classes=3) == order[:3]


def test_names_may_have_what_other_systems_take_for_the_end_of_a_line(write):
  order = choose_classes(ODD, config_of(class_order=write(*reversed(ODD))))
  assert order.tolist() == [2, 1, 0]


def test_a_file_tells_which_classes(write):
  path = write("dog", "bee", "cat")
  order = np.random.RandomState(0).permutation(3)
  assert chosen(classes=path) == [("bee", "cat", "dog")[place] for place in order]
  assert chosen(classes=path, class_order=path) == ["dog", "bee", "cat"]


def test_an_order_may_name_more_classes_than_are_used(write, tmp_path):
  (tmp_path / "few.txt").write_text("cat\nant\n")
  order = write("dog", "élan", "ant", "cat", "bee")
  assert chosen(classes=str(tmp_path / "few.txt"), class_order=order) == ["ant", "cat"]


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (["ant", "catt"], "line 2: the data set has no class catt; did you mean cat?"),
    (["12"], "line 1: the data set has no class 12; its first one is ant"),
    (["ant", "", "bee", "ant"], "line 4 names class ant, as line 1 does: name it once"),
    ([], "has no names: give one class a line"),
    (["ant", "bee", "cat"], "lacks class dog (2 in all): name every class, or give"),
  ],
)
def test_mistakes_are_named_with_their_line(write, names, message):
  path = write(*names)
  with pytest.raises(ConfigError) as caught:
    chosen(class_order=path)
  assert str(caught.value).startswith(f"--class_order={path}")
  assert message in str(caught.value)


def test_more_classes_than_there_are(write):
  with pytest.raises(ConfigError, match="--num_classes=3, but .* only 2 classes"):
    chosen(classes=write("ant", "bee"), num_classes=3)
