"""Facts of a run as data, and the views that show them. Nothing here changes a model or a decision."""
