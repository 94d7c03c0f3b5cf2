"""The order of the stages (Algorithm 4). Only this package joins them."""
