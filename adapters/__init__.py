"""Third-party models as a model plus tasks; one file per family.

Nothing is imported here, so that each family needs only its own libraries. No other part of the package
imports this one.
"""
