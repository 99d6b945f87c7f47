"""Pruning without training: trained multi-task networks, and what is left of them."""
