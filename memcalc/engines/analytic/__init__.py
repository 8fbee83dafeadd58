"""The analytic engine: from a config alone, without torch, for one job or for arrays of jobs."""
