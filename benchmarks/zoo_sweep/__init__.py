"""Networks from other libraries: what can be removed, whether the result is sound and the model unchanged.

``networks`` lists them, ``measure`` has the stages of one, and ``cells`` says what a row holds.
"""
