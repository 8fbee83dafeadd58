"""What CUDA does that a CPU wheel of PyTorch does not: tables and functions, each with its source."""
