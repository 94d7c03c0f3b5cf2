"""`python -m tyr_jax.finetune`: see `tyr_jax.cli.finetune`."""

from tyr_jax.cli.finetune import main

if __name__ == "__main__":
    main()
