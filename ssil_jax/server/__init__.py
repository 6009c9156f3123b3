"""The page of a model and its REST interface: what it knows, predict, and learn."""
