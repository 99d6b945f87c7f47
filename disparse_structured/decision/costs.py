"""Costs: what a budget can limit."""
