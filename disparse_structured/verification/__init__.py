"""The masked twin, and the check of a pruned network against it."""
