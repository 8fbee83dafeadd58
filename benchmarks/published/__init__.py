"""memcalc against training steps that others measured and published."""
