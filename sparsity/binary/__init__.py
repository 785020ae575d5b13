"""Train binary networks in little memory, and run them with bit operations (Wang et al. 2021, arXiv 2102.04270)."""
