"""Third-party models as a model plus tasks; one file a family.

Nothing is imported here, so that one family can be used without the libraries of the others, and no
other part of the package imports this one.
"""
