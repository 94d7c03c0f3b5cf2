"""How good and how fast a model is: perplexity, likelihoods, tasks, generated text, speed."""
