"""Ray: a private one on this machine, or a running cluster, and its nodes."""
