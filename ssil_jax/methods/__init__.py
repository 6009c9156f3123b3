"""Methods of class-incremental learning: the contract, and one small file for each."""

from ssil_jax.methods.base import Method, SeenClasses
from ssil_jax.methods.registry import METHODS, get_method

__all__ = ["METHODS", "Method", "SeenClasses", "get_method"]
