"""Methods in files of one's own: they run, resume, and are never taken for edited ones."""

import importlib
import json
import sys

import bad_inputs
import pytest
from folders import ROOT
from rich.console import Console

import ssil_jax
from ssil_jax.commands import run
from ssil_jax.methods import get_method
from ssil_jax.methods.source import source_hash

COMMAND = "run.py --flagfile=small.cfg --method=focal_ssil:FOCAL --workdir=run"


def focal(tmp_path, **replaced):
  """The example in the current folder, as a new process finds it."""
  text = (ROOT / "examples" / "focal_ssil.py").read_text()
  for old, new in replaced.values():
    assert old in text
    text = text.replace(old, new, 1)
  (tmp_path / "focal_ssil.py").write_text(text)
  sys.modules.pop("focal_ssil", None)


def outcome(capsys, *flags):
  """Exit code, standard output and error of a run."""
  capsys.readouterr()
  code = run.main([*COMMAND.split(), *flags])
  return code, *capsys.readouterr()


def test_the_example_runs_and_is_resumed_as_long_as_its_code_is_the_same(tmp_path, capsys):
  (tmp_path / "small.cfg").write_text(bad_inputs.SMALL)
  focal(tmp_path)
  code, out, _ = outcome(capsys, "--focal_gamma=1", "--lucir_lambda=5")
  assert code == 0
  assert "no effect on --method=focal_ssil:FOCAL: --lucir_lambda (lucir)" in out
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  assert results["method_title"] == "SS-IL, focal"
  assert config["method"] == "focal_ssil:FOCAL"
  assert config["method_source"] == source_hash("focal_ssil:FOCAL")
  assert config["focal_gamma"] == 1.0
  assert "lucir_lambda" not in config

  docstring = ("SS-IL with the focal loss", "# SS-IL, and a focal loss")
  comment = ("  loss = separated", "\n  # Per sample.\n  loss = separated")
  focal(tmp_path, docstring=docstring, comment=comment)
  code, out, _ = outcome(capsys, "--focal_gamma=1")
  assert code == 0
  assert "states 1 to 2 are done already" in out

  workdir = tmp_path / "run"
  assert outcome(capsys, "--focal_gamma=2")[::2] == (
    2,
    f"error: {workdir} holds a run with another configuration; use another --workdir, or "
    "the same flags:\nerror: --focal_gamma: 1.0 there, 2.0 now\n",
  )
  before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
  focal(tmp_path, code=("(1 - jnp", "(1.0 - jnp"))
  assert outcome(capsys, "--focal_gamma=1")[::2] == (
    2,
    f"error: {workdir} holds a run of --method=focal_ssil:FOCAL, whose source has changed "
    "since: use another --workdir, or put the source back\n",
  )
  assert {path: path.read_bytes() for path in before} == before

  # The same, of a checkpoint whose work directory has lost its record of the source.
  del config["method_source"]
  (workdir / "config.json").write_text(json.dumps(config))
  code, out, error = outcome(capsys, "--focal_gamma=1")
  assert code == 2
  assert "source of --method" in error


def test_a_run_from_python_is_of_the_code_that_was_loaded(tmp_path):
  focal(tmp_path)
  before = source_hash("focal_ssil:FOCAL")
  focal(tmp_path)
  settings = {"workdir": "run", "width": 1, "epochs_first": 1, "epochs": 1}
  config = ssil_jax.make_config("focal_ssil:FOCAL", num_devices=1, **settings)
  path = tmp_path / "focal_ssil.py"  # edited in a notebook's other window
  path.write_text(path.read_text().replace("(1 - jnp", "(2 - jnp"))
  ssil_jax.run(config, console=Console(quiet=True))
  assert json.loads((tmp_path / "run" / "config.json").read_text())["method_source"] == (
    before
  )


def test_the_example_lends_nothing_to_ssil_and_takes_nothing_from_it(tmp_path, capsys):
  (tmp_path / "small.cfg").write_text(bad_inputs.SMALL)
  bad_inputs.FINISHED(tmp_path)  # by ft, whose first state is that of ssil
  focal(tmp_path)
  code, _, error = outcome(capsys, "--workdir=new", "--from_workdir=run")
  assert code == 2
  assert "error: --method: 'ft' there, 'focal_ssil:FOCAL' now\n" in error
  assert "error: --focal_gamma" not in error


BASE = """\
import helpers
from ssil_jax.methods.ssil import SSIL


def twice(x):
  return 2 * x  # doubled


TEXT = "a # b"
MINE = SSIL._replace(title="mine")
"""
HELPERS = "def half(x):\n  return x / 2\n"


@pytest.fixture
def hash_of(tmp_path):
  """(mine.py, helpers.py) -> the hash of the method in it."""

  def hash_of(text=BASE, helpers=HELPERS):
    for name, content in (("mine", text), ("helpers", helpers)):
      (tmp_path / f"{name}.py").write_bytes(content.encode())
      sys.modules.pop(name, None)
    return source_hash("mine:MINE")

  return hash_of


def test_comments_docstrings_and_empty_lines_do_not_count(hash_of):
  before = hash_of()
  for old, new in (
    ("  # doubled", "  # two times"),
    ("  # doubled", ""),
    ("(x):\n", '(x):\n  """Returns two x."""\n\n'),
    ("import helpers", '"""All of mine.\n\nAnd more. # 1\n"""\nimport helpers'),
    ("\n\n\n", "\n\n\f\n"),
    ("\n", "\r\n"),
    ("MINE", "# \u5b9e\nMINE"),
  ):
    assert hash_of(BASE.replace(old, new)) == before, new


def test_all_code_counts(hash_of):
  hashes = [hash_of()]
  for old, new in (
    ("2 * x", "3 * x"),
    ("a # b", "a # c"),
    ("TEXT", "TEXT = 1\nTEXT"),
    ('title="mine"', 'title="yours"'),
    ("  return 2", '  "\u5b9e"; return 2'),
    ("  return 2", '  "\u5b9e"; return 3'),  # beside a docstring
  ):
    hashes.append(hash_of(BASE.replace(old, new)))
  assert len({*hashes}) == len(hashes)


def test_the_modules_that_it_imports_count_and_others_do_not(hash_of, tmp_path):
  before = hash_of()
  (tmp_path / "other.py").write_text("x = 1\n")
  assert hash_of() == before
  assert hash_of(helpers=HELPERS.replace("/ 2", "/ 3")) != before
  assert hash_of(helpers=HELPERS + "# of x\n") == before


def test_a_file_here_hides_no_library(tmp_path, monkeypatch):
  monkeypatch.delitem(sys.modules, "colorsys", raising=False)
  (tmp_path / "colorsys.py").write_text("mine = True\n")
  focal(tmp_path)
  assert get_method("focal_ssil:FOCAL").title == "SS-IL, focal"
  assert not hasattr(importlib.import_module("colorsys"), "mine")


def test_a_setting_may_have_the_name_and_type_of_another_methods(tmp_path):
  setting = "  lucir_lambda: float = setting(3.0, 'mine')"
  bad_inputs.mine(f"{bad_inputs.DATACLASS}{setting}")(tmp_path)
  request = run.parse(["run.py", "--method=mine:MINE", "--lucir_lambda=5"])
  assert request.config.method_settings.lucir_lambda == 5.0
  assert request.ignored == ()
