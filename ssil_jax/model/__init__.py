"""A trained model: it answers for photos, learns classes, and goes to other programs."""
