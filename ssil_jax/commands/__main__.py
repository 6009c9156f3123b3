"""`python -m ssil_jax.commands COMMAND ...`."""

from ssil_jax.commands import main

main()
