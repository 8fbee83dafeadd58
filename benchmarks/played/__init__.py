"""The analytic engine's played step against the trace engine's, over families and settings."""
