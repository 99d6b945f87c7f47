"""From scores to a plan: votes, arbiters, budgets, plans."""
