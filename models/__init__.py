"""Targets: the models that decide every token, and how their rows become tokens."""
