"""Detection and instance segmentation: pyramid, region proposals, 1..n box stages, masks."""
