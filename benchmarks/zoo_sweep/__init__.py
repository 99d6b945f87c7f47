"""Networks of other libraries: what can be removed, whether the result is sound, and the model untouched."""
