"""Makes the results of a study: tables, networks, exported files, and the costs of the networks."""
