"""Data sets, rendered scenes, losses, metrics and the demo: what benchmarks and examples need."""
