"""Helpers below every other layer: files, figures."""
