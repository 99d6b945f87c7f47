"""From a user's batch to the arguments of ``forward``: batches, calibration, random states, modes."""
