"""Connect to Ray: start a private Ray on this machine, or join a running cluster and check its nodes."""
