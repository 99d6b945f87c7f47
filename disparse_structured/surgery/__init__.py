"""From a plan to a smaller network: module, exported graph, weight masks, extraction, saving."""
