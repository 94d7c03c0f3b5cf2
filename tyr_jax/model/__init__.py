"""The decoder as pure functions, and the families of models as data."""
