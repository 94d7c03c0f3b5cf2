"""Training that wins back what pruning lost.

`adapters.py` says what is trained, `loss.py` what for, `examples.py` on what, and `train.py` how;
`settings.py` has what a user may choose of all that.
"""
