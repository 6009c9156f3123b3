"""What a run's time was spent on: every moment counts once, and resuming adds up."""

import json

import jax
import jax.numpy as jnp
import pytest
from quick import quick_network
from small_runs import run

from ssil_jax.reports.results import load_run
from ssil_jax.reports.times import PARTS
from ssil_jax.training.stopwatch import Stopwatch


def seconds_of(watch):
  return {part: s for part, s in watch.so_far()["seconds"].items() if s}


def test_contexts_within_count_by_themselves_and_all_adds_up(clock):
  watch = Stopwatch("opening")
  clock[0] += 3
  watch.switch("other")
  clock[0] += 1
  with watch.of("state_changes"):
    clock[0] += 5
    with watch.of("steps"):
      clock[0] += 20
      watch.move(4, "input")
      with watch.of("checkpoints"):
        clock[0] += 7
    clock[0] += 2
  found = {"opening": 3, "other": 1, "state_changes": 7, "steps": 16, "input": 4}
  assert seconds_of(watch) == found | {"checkpoints": 7}
  assert sum(seconds_of(watch).values()) == clock[0] - 1000
  saved = json.loads(json.dumps(watch.lap()))
  assert seconds_of(watch) == {}
  clock[0] += 2
  watch.add(saved)
  watch.add({})  # of a checkpoint of an earlier version
  assert seconds_of(watch) == found | {"checkpoints": 7, "other": 3}
  assert set(watch.so_far()["seconds"]) == set(PARTS)


def test_waiting_for_the_compiler_counts_once(clock):
  watch, compile_ = Stopwatch("steps"), "/jax/core/compile/"
  with watch.watching_compiler():
    for now, event, duration in (
      (1003, "jaxpr_trace_duration", 1),  # from 1002
      (1005, "jaxpr_trace_duration", 1),  # from 1004
      (1006, "jaxpr_trace_duration", 5),  # from 1001, with both of them
      (1009, "backend_compile_duration", 2),
    ):
      clock[0] = now
      jax.monitoring.record_event_duration_secs(compile_ + event, duration)
    jax.monitoring.record_event_duration_secs("/jax/something/else", 3)
  jax.monitoring.record_event_duration_secs(compile_ + "backend_compile_duration", 1)
  clock[0] = 1010
  assert seconds_of(watch) == {"compiling": 7, "steps": 3}
  assert watch.so_far()["programs"] == {"compiled": 1, "cached": 0}


def test_programs_of_the_cache_are_told_from_others():
  # That of the tests' environment keeps what takes 0.1 s to compile.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  try:
    found = []
    for _ in range(2):
      jax.clear_caches()
      watch = Stopwatch()
      with watch.watching_compiler():
        jax.jit(lambda x: jnp.cos(x) * 0.12345)(jnp.float32(1)).block_until_ready()
      found.append(watch.so_far()["programs"])
  finally:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  assert found[0]["compiled"] >= 1
  assert found[1] == {"compiled": 0, "cached": sum(found[0].values())}


def test_a_run_tells_what_it_took(tmp_path):
  with quick_network():
    results = run(tmp_path / "run")
  assert load_run(tmp_path / "run").results["seconds"] == results["seconds"]
  for part in PARTS:
    values = [row["seconds"][part] for row in results["states"]]
    assert sum(values) == pytest.approx(results["seconds"][part])
  for part in ("steps", "compiling", "evaluation", "state_changes"):
    assert all(row["seconds"][part] > 0 for row in results["states"][:1])
  first, *others = (row["seconds"]["opening"] for row in results["states"])
  assert first > 0
  assert others == [0, 0]
  # What is saved after a state is of the next one.
  first, *others = (row["seconds"]["checkpoints"] for row in results["states"])
  assert first == 0
  assert min(others) > 0
