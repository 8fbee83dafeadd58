"""memcalc: how many bytes a training step takes, and where each byte goes."""
