"""Data-parallel engines: what one rank holds of parameters, gradients, masters and states, each in a file of its own."""
