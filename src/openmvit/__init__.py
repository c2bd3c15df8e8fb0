"""OpenMViT: MViTv2 and MViTv1 as one network for any number of axes."""

__version__ = "0.1.0"
