"""A family of models from outside the package: Seed-OSS, as one entry of data.

It is Llama whose attention has biases that two keys of `config.json` tell of, one of them true where it is
absent. Every other key that Llama lacks is accounted for, too: one without an entry would be an error.

From the directory above this one:

    from tyr_jax.io.checkpoint import load_model

    model = load_model("ByteDance-Seed/Seed-OSS-36B-Instruct", family="examples.family:SEED_OSS")
"""

from tyr_jax.model.families import Family

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
