"""Hashes what small runs of every kind leave; they stay if a change changes nothing.

  python tests/run_hashes.py --output=BEFORE.json
  python tests/run_hashes.py --compare=BEFORE.json

The runs differ in method, in where the images live, and in whether they were
interrupted. Both files must come from the same machine: bits differ between CPUs. They
are no part of the repository. Exit code 1 if anything differs.
"""

import argparse
import json
import pathlib
import signal
import sys
import tempfile
import time

import kills
from folders import photo, save

SMALL = [
  *kills.SMALL_RUN,
  "--batch_size_test=32",
  "--num_states=3",
  "--num_classes=9",
  "--memory_size=27",
  "--epochs_first=2",
  "--epochs=2",
]
BIC = "--bic_held_out=0.4"
RUNS = {
  "ssil": ["--method=ssil"],
  "ssil_tkd": ["--method=ssil_tkd", "--temperature=3"],
  "icarl": ["--method=icarl", "--selection=herding"],
  "ft": ["--method=ft"],
  "il2m from ft": ["--method=il2m", "--from_workdir={folder}/ft"],
  "lwf": ["--method=lwf"],
  "bic": ["--method=bic", BIC],
  "eeil": ["--method=eeil", "--eeil_epochs=3"],
  "wa": ["--method=wa"],
  "lucir": ["--method=lucir", "--lucir_lambda=5", "--noreset_momentum"],
  "der": ["--method=der", "--der_alpha=0.3"],
  "er_ace": ["--method=er_ace"],
  "joint": ["--method=joint"],
  "gdumb": ["--method=gdumb", "--memory_size=72", "--epochs=3"],
  "ncm": ["--method=ncm"],
  "fearnet": ["--method=fearnet"],
  "cgan_features": ["--method=cgan_features", "--cgan_steps=20"],
  "podnet": ["--method=podnet", "--podnet_epochs=2"],
  "ssil, streamed": ["--method=ssil", "{photos}"],
  "eeil, streamed": ["--method=eeil", "--eeil_epochs=2", "{photos}"],
  "eeil, interrupted": ["--method=eeil", "--eeil_epochs=3"],
  "bic, streamed, interrupted": ["--method=bic", BIC, "{photos}"],
}


def make_photos(root):
  for split, each in (("train", 8), ("test", 3)):
    for label in range(6):
      for number in range(each):
        pixels = photo(90 + label, 80 + number, seed=(split == "test", label, number))
        save(root / split / f"class{label}" / f"{number}.jpg", pixels)
  return root


def arguments_of(name, folder):
  photos = [
    "--dataset=image_folder",
    f"--data_dir={folder / 'photos'}",
    "--image_size=72",
    "--num_classes=6",
    "--memory_size=18",
    "--batch_size_new=8",
    "--batch_size_memory=4",
    "--width=2",
    "--log_every=3",
  ]
  arguments = list(SMALL)
  for argument in RUNS[name]:
    if argument == "{photos}":
      arguments += photos
    else:
      arguments.append(argument.format(folder=folder))
  return arguments


def hashes_of(name, folder, cache):
  """Does one run; what it left, by name."""
  workdir = folder / name.replace(", ", "-")
  arguments = arguments_of(name, folder)
  files = {"cache": cache, "log": open(folder / "log", "a")}  # noqa: SIM115
  if "interrupted" in name:
    with kills.running(workdir, arguments, **files) as process:
      while kills._states_done(workdir) < 1:
        assert process.poll() is None, f"{name} ended before it was interrupted"
        time.sleep(0.002)
      process.send_signal(signal.SIGTERM)
      assert process.wait() == 128 + signal.SIGTERM, name
  with kills.running(workdir, arguments, **files) as process:
    assert process.wait() == 0, f"{name}: see {folder / 'log'}"
  return kills.digests(workdir, hidden=str(folder))


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--output", help="file that gets the hashes")
  parser.add_argument("--compare", help="file with the hashes of before")
  parser.add_argument(
    "--cache", help="folder of compiled programs, to be kept between calls"
  )
  parser.add_argument("--only", help="part of the names of the runs to do")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    make_photos(folder / "photos")
    found = {}
    for name in RUNS:
      if options.only is None or options.only in name:
        found[name] = hashes_of(name, folder, options.cache or folder / "cache")
        print(f"{name}: {len(found[name])} hashes", flush=True)
  if options.output:
    pathlib.Path(options.output).write_text(json.dumps(found, indent=1))
  if not options.compare:
    return 0
  before = json.loads(pathlib.Path(options.compare).read_text())
  different = [
    f"{name}: {what}"
    for name, hashes in found.items()
    for what in sorted(hashes | before[name])
    if hashes.get(what) != before[name].get(what)
  ]
  print(f"{sum(map(len, found.values()))} hashes, {len(different)} different")
  print("\n".join(different[:40]))
  return 1 if different else 0


if __name__ == "__main__":
  sys.exit(main())
