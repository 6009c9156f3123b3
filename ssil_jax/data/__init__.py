"""Data sets: found, checked, put in the order of learning, and made into batches."""
