"""A family of models defined outside the package: Seed-OSS, as one data entry.

Seed-OSS is Llama with attention biases. Two keys of `config.json` describe them, and one of the two defaults
to true. The entry also covers every other key that Llama lacks, because a key without an entry is an error.

Run this from the directory above this one:

    from tyr_jax.io.checkpoint import load_model

    model = load_model("ByteDance-Seed/Seed-OSS-36B-Instruct", family="examples.family:SEED_OSS")
"""

from tyr_jax.model.family import Family

SEED_OSS = Family(
    model_type="seed_oss",
    architecture="SeedOssForCausalLM",
    tensors={"qkv_bias": "attention_bias", "out_bias": "attention_out_bias", "mlp_bias": "mlp_bias"},
    defaults={
        "attention_bias": True,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 524288,
    },
    harmless=frozenset({"residual_dropout"}),
)
