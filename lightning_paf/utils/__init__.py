"""Helpers below all other layers: files, figures, hashing, processes, ranks."""
