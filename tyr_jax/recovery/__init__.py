"""Training that recovers what pruning lost.

`adapters.py` has what is trained, `loss.py` the objective, `examples.py` the data, and `train.py` the
training itself; `settings.py` has the options of all that.
"""
