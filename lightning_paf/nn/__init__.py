"""Layers: the classifier that everything meets, activations and their swap, penalties, modes."""
