"""Side effects of a long job: its output directory, finished work, progress and events."""
