"""The optimizers memcalc knows, each an entry of data in the file of its library."""
