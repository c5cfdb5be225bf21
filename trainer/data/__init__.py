"""From raw interactions to what a training step reads."""
