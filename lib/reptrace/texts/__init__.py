"""Text -> documents -> token sequences, with fingerprints; what is made from a text (items, n-grams)."""
