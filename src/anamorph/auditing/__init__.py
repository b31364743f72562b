"""The audit: model and proxies over the same data, summed per sequence."""
