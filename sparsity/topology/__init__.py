"""Define topologies: rules that change the set of active (unmasked) connections during the training."""
