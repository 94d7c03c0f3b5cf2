"""What a run will need, before it runs: memory, disk, FLOPs, time."""
