"""Synthetic images: converted once to npy arrays, then read through memory maps."""
