"""The engines, each of which turns a job into a footprint; they never import each other."""
