"""Reproduces the SS-IL paper's tables and figures, at its own scale or a smaller one."""
