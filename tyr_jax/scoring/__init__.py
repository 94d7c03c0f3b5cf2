"""What a candidate is scored by, and how a whole population is scored."""
