"""Nothing is drawn for the modules that families are held against."""

from tests.meta import unfilled

__all__ = ["unfilled"]
