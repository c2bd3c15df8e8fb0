"""The ground floor: tensors only, any number of axes.

Axis names in docstrings: B batch, C channels, h heads, c channels of one head, `*grid` tokens along each axis
((h, w) or (t, h, w)), Q and K query and key positions along one axis. Tokens are a channels-last grid `[B, *grid, C]`;
the class token travels beside it as `[B, 1, C]`, or None.
"""

from openmvit.nn.fast.choose import plain

__all__ = ["plain"]
