"""How a footprint is shown: interchangeable renderers, each a function of footprints and nothing else."""
