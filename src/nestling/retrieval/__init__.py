"""Search in vectors and words: rotation, codecs, exact top-k, BM25 and fusion. Numpy alone."""
