"""The order of stages (Algorithm 4): the only room that joins them."""
