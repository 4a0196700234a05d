"""Faults put into a working chain one at a time, to see whether the cause that is named is the one put in."""
