"""Predictions held against real steps, tensor by tensor: a pure comparison of what both say, with no torch in it."""
