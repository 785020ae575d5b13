"""Train binary networks in little memory, and use them by counting bits (Wang et al. 2021, arXiv 2102.04270)."""
