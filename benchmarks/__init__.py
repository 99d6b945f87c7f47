"""Benchmarks on real data and on the machine at hand: ``python -m benchmarks.<name>``."""
