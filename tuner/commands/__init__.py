"""Contains one module for each subcommand of `tune-sparsity`."""
