"""Binary networks: training in little memory, and inference that counts bits (Wang et al. 2021, arXiv 2102.04270)."""
