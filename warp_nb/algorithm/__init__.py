"""Algorithm 1 of WARP (arXiv 2406.16768) in plain PyTorch and nothing else, with the paper's line numbers."""
