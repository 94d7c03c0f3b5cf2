"""Devices, hosts, weights on disk, batches, timing, and the cache of compiled programs."""
