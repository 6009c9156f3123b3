"""Tests run strict, and on four virtual CPU devices whatever the machine has."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Small networks run a few steps: compiling them well would take longer than it saves.
jax.config.update("jax_disable_most_optimizations", True)
