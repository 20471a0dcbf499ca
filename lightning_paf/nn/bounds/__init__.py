"""Bounds of the values of a network on sets of images."""
