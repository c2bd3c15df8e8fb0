"""Weights and settings of other projects, both ways: `config_from`, `to_native`, `from_native`, `recognise`."""

from openmvit.convert.inflation import inflate
from openmvit.convert.keymap import expected_shapes
from openmvit.convert.recognise import recognise
from openmvit.convert.sources import (
    SOURCES,
    config_from,
    detect_source,
    dropped_keys,
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
    "dropped_keys",
    "expected_shapes",
    "from_native",
    "fuse_qkv",
    "inflate",
    "recognise",
    "split_qkv",
    "to_native",
    "unwrap",
]
