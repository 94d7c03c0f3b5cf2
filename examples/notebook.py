"""The Python API as in a notebook: prune 25% of the `builtin` model, look at it, try it, and save it.

  python examples/notebook.py

Like the demo, it takes minutes on two CPU cores. In a notebook each part is a cell. A cell that ends with
`result` shows the tables and figures of the report.
"""

# %% Prune
import tyr_jax

result = tyr_jax.prune_model("builtin", sparsity=0.25, preset="quick")
print(result)

# %% Try it
print(tyr_jax.generate_text(result, "The capital of France is", max_tokens=20)[0])

# %% Measure it on the held-out text
print(tyr_jax.evaluate_model(result))

# %% Save it: a directory for transformers, and a file for llama.cpp
result.save("pruned")
tyr_jax.export_model("pruned", quantize="q8_0")
