"""How the bundled models were made: the corpus, the tokenizer, the trainer, and the measurements of the model card."""
