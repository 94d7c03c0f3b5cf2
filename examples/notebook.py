"""The Python API as in a notebook: prune the embedded model to 25 %, look at it, try it, keep it.

  python examples/notebook.py

It takes what the demo takes: minutes on two CPU cores. In a notebook each part is a cell, and `result` as the
last line of one shows the tables and figures of the report.
"""

# %% Prune
import tyr_jax

result = tyr_jax.prune_model("builtin", sparsity=0.25, preset="quick")
print(result)

# %% Try it
print(tyr_jax.generate_text(result, "The capital of France is", max_tokens=20)[0])

# %% Measure it on the text that was held out
print(tyr_jax.evaluate_model(result))

# %% Keep it: a directory for transformers, and a file for llama.cpp
result.save("pruned")
tyr_jax.export_model("pruned", quantize="q8_0")
