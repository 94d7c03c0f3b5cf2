"""Devices, hosts, weights on disk, batches, and compiled programs that are kept."""
