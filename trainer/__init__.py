"""One training run of DARec: data, model, losses, loop. Knows no search and no tracking."""
