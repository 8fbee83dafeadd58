"""memcalc and its peers on the same published cases."""
