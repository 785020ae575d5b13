"""One module a subcommand of `tune-sparsity`."""
