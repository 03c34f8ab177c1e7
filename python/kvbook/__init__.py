"""Codebooks for quantised KV caches.

Words and shapes: L layers; per layer H query heads, G KV heads, head dimension D. A head's D channels are cut into S
groups of d channels; each group has K centroids.
"""
from ._library import Error, Status
from .book import Book, Codebook, Layer
from .cache import Cache, CacheBytes, Policy
from .capture import Capture, write_capture
from .kmeans import KmeansResult, kmeans

__all__ = ["Book", "Cache", "CacheBytes", "Capture", "Codebook", "Error", "KmeansResult", "Layer", "Policy", "Status",
           "kmeans", "write_capture"]
