"""A large made-up shop, and what is measured on it."""
