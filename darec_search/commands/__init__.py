"""What each command of `darec-search` does, a function of the parsed arguments; imports stay inside, to start fast."""
