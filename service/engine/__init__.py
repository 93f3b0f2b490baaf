"""From texts to vectors: lanes of waiting work, batches, the thread that runs them and who watches it."""
