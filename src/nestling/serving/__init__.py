"""Serving: exports for a runtime without torch, indexes, the service, engines, and encoding of catalogues."""
