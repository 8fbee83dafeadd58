"""Tapes of allocations, and the fold that reads them."""
