"""Networks from other libraries: what can be removed, whether the result is sound and the model unchanged."""
