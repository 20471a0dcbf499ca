"""The classifier, activations and their replacement, modes."""
