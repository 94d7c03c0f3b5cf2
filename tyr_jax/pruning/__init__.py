"""Local pruning of a site, the fold over blocks that builds a supernet, and physical compression."""
