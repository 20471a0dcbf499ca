"""Bounds of each kind of layer."""
