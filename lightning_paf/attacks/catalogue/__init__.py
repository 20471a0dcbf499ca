"""Attacks from the literature that AutoAttack does not contain."""
