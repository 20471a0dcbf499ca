"""The classifier, activations and their replacement, penalties, modes."""
