"""Training steps compile for TPUs, where libtpu is installed (benchmarks/README.md)."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = ["--image_size=8", "--width=4", "--num_classes=20", "--batch_new=3"]
SMALL += ["--batch_memory=1", "--precisions=bfloat16"]


@pytest.fixture
def tpu_compile(monkeypatch):
  monkeypatch.syspath_prepend(BENCHMARKS)
  monkeypatch.setattr(os, "environ", dict(os.environ))
  return importlib.import_module("tpu_compile")


def test_counts_collectives_and_their_bytes(tpu_compile):
  # Two images: (3 * 5 * 4 + 7 * 2) and, started and done, 11 * 4 bytes; the fusion is none.
  hlo = """
  %a = (f32[3,5]{1,0:T(8,128)}, bf16[7]{0}) all-reduce(%x, %y), channel_id=1
  %b = f32[11]{0:T(128)S(1)} all-reduce-start(%z), channel_id=2
  %c = f32[11]{0:T(128)} all-reduce-done(%b)
  %d = f32[100]{0} fusion(%c), calls=%all-reduce.1
  %e = pred[] all-gather(%p), dimensions={0}
  """
  sizes = tpu_compile.Sizes(
    image_size=8, num_classes=20, width=4, batch_new=1, batch_memory=1
  )
  assert tpu_compile.collectives(hlo, sizes) == {
    "collectives": 3,
    "collective_bytes_per_image": (3 * 5 * 4 + 7 * 2 + 11 * 4 + 1) / 2,
  }


def test_main_memory_is_read_and_written_in_whole_tiles(tpu_compile):
  # b has 3 -> 8 rows of 5 -> 128 float32, 4096 bytes; s, 9 -> 16 rows of 99 -> 128 in
  # bfloat16, 4096, too, and 2 -> 8 rows 2048. S(1) is on the chip.
  hlo = """
%inner (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %twice = f32[4]{0} add(%p, %p)
}

%branch (q: f32[3,5]) -> f32[3,5] {
  %q = f32[3,5]{1,0:T(8,128)} parameter(0)
  ROOT %r = f32[3,5]{1,0:T(8,128)S(1)} negate(%q)
}

ENTRY %main (a: f32[4], b: f32[5,3]) -> f32[3,5] {
  %a = f32[4]{0} parameter(0)
  %b = f32[5,3]{0,1:T(8,128)} parameter(1)
  %two = (f32[4]{0}, pred[7]{0}) fusion(%a), kind=kLoop, calls=%inner
  %first = f32[4]{0} get-tuple-element(%two), index=0
  %in = (bf16[9,99]{1,0:T(8,128)S(1)}, bf16[9,99]{1,0:T(8,128)}, u32[]) copy-start(%b)
  %s = bf16[9,99]{1,0:T(8,128)S(1)} copy-done(%in)
  %part = ((f32[5,3]{0,1:T(8,128)}), bf16[2,99]{1,0:T(8,128)S(1)}, s32[]) slice-start(%b)
  ROOT %c = f32[3,5]{1,0} conditional(%a, %b, %b), branch_computations={%branch, %branch}
}
"""
  module = importlib.import_module("hlo_traffic")
  fusion, copy, part, branch = 16 + 16 + 7, 4096, 2048, 4096
  assert module.main_memory_bytes(hlo) == fusion + copy + part + 2 * branch


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu is not installed: no step is compiled for TPUs (benchmarks/README.md)",
)
def test_the_small_form_compiles_for_a_slice_and_goes_on_where_it_was(tmp_path):
  output = tmp_path / "tpu.json"

  def rows(steps):
    command = [sys.executable, BENCHMARKS / "tpu_compile.py", f"--output={output}"]
    subprocess.run([*command, f"--steps={steps}", *SMALL], check=True, timeout=600)
    return json.loads(output.read_text())["rows"]

  (ours,) = rows("ssil_tkd")
  assert (ours["topology"], ours["chips"], ours["step"]) == ("v5e:2x2", 4, "ssil_tkd")
  # At least BatchNorm's statistics, forward and backward, and the gradients.
  assert ours["collectives"] >= 3
  assert 0 < ours["collective_bytes_per_image"] < ours["bytes_per_image"]
  assert 0 < ours["main_memory_bytes_per_image"] < ours["bytes_per_image"]
  assert ours["roofline_images_per_s"] == pytest.approx(
    min(197e12 / ours["flop_per_image"], 819e9 / ours["main_memory_bytes_per_image"])
  )
  again, peer = rows("ssil_tkd,flax")
  assert again == ours
  assert peer["step"] == "flax"
  assert "error" not in peer
