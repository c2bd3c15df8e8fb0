"""Cutting polygons to a rectangle, exactly and in float64."""

from __future__ import annotations

import numpy as np

Polygons = list[np.ndarray]
"""Mask of one instance: float64 arrays x0 y0 x1 y1 ..., whose union it is."""


def clip_polygon(polygon: np.ndarray, rectangle: tuple[float, float, float, float]) -> np.ndarray:
    """The part of a polygon inside a rectangle; empty if they share no area.

    Parts that hang together only outside stay one polygon, joined by edges that run along the rectangle's side there
    and back, which enclose nothing.

    Args:
        polygon: float64, x0 y0 x1 y1 ...
        rectangle: left, top, right, bottom.
    Returns:
        float64, in the same coordinates.
    Source: Sutherland and Hodgman, Reentrant polygon clipping, 1974.
    """
    points = polygon.reshape(-1, 2)
    low, high = np.array(rectangle[:2], dtype=np.float64), np.array(rectangle[2:], dtype=np.float64)
    if ((points >= low) & (points <= high)).all():
        return polygon
    for axis in (0, 1):
        points = _cut(points, axis, low[axis], points[:, axis] >= low[axis])
        points = _cut(points, axis, high[axis], points[:, axis] <= high[axis])
    return _without_spikes(points, low, high).reshape(-1)


def _cut(points: np.ndarray, axis: int, bound: float, inside: np.ndarray) -> np.ndarray:
    """Keep one side of the line where coordinate `axis` is `bound`, points `[m, 2]`."""
    ahead = np.roll(points, -1, axis=0)
    crosses = inside != np.roll(inside, -1)
    way = np.where(crosses, ahead[:, axis] - points[:, axis], 1.0)
    meeting = points + ((bound - points[:, axis]) / way)[:, None] * (ahead - points)
    meeting[:, axis] = bound
    return np.stack([points, meeting], axis=1)[np.stack([inside, crosses], axis=1)]


def _without_spikes(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Drop points between two others on the same side of the rectangle.

    Cutting one side after the other leaves edges that run to a corner and back where the polygon passes outside; they
    enclose nothing, and a box around the points would reach too far.
    """
    while len(points):
        points = points[(points != np.roll(points, -1, axis=0)).any(1)]
        on = np.concatenate([points == low, points == high], axis=1)
        between = (on & np.roll(on, 1, axis=0) & np.roll(on, -1, axis=0)).any(1)
        if not between.any():
            break
        points = points[~between]
    return points if len(points) > 2 else points[:0]
