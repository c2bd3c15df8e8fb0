"""Parameters and operations of a network, by a walk over its block records and layers; nothing is computed.

The conventions are those of the papers' tables, which were made with fvcore: a multiply-add is 1 operation, of a
convolution the products alone count, transposed ones per input cell; a layer or group norm is 5 per element (4 without
weights), a batch norm in evaluation 2, nearest resampling 1 and bilinear 4 per element of the output; softmax, GELU,
additions, biases, max pools, suppression and pooling of regions are 0. Zero rows that pad a window count as rows.
"""

from openmvit.counting.classifiers import block_operations, count_classifier
from openmvit.counting.cost import Cost, Count
from openmvit.counting.detectors import count_detector
from openmvit.counting.layers import count_calls

__all__ = ["Cost", "Count", "block_operations", "count_calls", "count_classifier", "count_detector"]
