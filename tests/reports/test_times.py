"""What is said of the time that runs took."""

import json

from written_runs import measured_run, write_run

from ssil_jax.reports.results import load_run
from ssil_jax.reports.times import PARTS, added, time_tables, total

FIRST = {"steps": 100.0, "input": 1.0, "compiling": 20.0, "opening": 9.0}
SECOND = {"steps": 60.0, "evaluation": 4.0, "state_changes": 2.0, "checkpoints": 1.0}


def test_parts_are_summed_and_shown_in_per_cent(tmp_path):
  path = measured_run(tmp_path / "new") / "results.json"
  results = json.loads(path.read_text())
  for row, seconds in zip(results["states"], (FIRST, SECOND), strict=True):
    row["seconds"] = seconds
  path.write_text(json.dumps(results))
  old, new = load_run(write_run(tmp_path / "old")), load_run(tmp_path / "new")
  sums = total(new.results["states"])
  assert list(sums) == list(PARTS)
  assert (sums["steps"], sums["evaluation"], sums["other"]) == (160, 4, 0)
  assert added(sums) == (1 + 4 + 2 + 1) / 160
  (table,) = time_tables([old, new])
  (row,) = table.rows  # the older run does not tell
  # Of 197 seconds.
  assert [cell.text for cell in row[1:]] == (
    ["3m 17s", "81.2", "0.5", "10.2", "2.0", "1.0", "0.5", "4.6", "0.0", "5.0"]
  )
  assert time_tables([old]) == []
  assert added(total([])) is None
