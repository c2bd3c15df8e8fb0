"""Weights and settings of other projects, both ways: `config_from`, `to_native`, `from_native`."""

from openmvit.convert.inflation import inflate
from openmvit.convert.keymap import expected_shapes
from openmvit.convert.sources import (
    SOURCES,
    config_from,
    detect_source,
    from_native,
    fuse_qkv,
    split_qkv,
    to_native,
    unwrap,
)

__all__ = [
    "SOURCES",
    "config_from",
    "detect_source",
    "expected_shapes",
    "from_native",
    "fuse_qkv",
    "inflate",
    "split_qkv",
    "to_native",
    "unwrap",
]
