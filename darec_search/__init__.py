"""Distributed architecture and hyperparameter search for LLM-based recommenders."""
