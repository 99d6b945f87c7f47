"""Data sets, rendered scenes, losses, metrics and the demo, for benchmarks and examples."""
