"""Execution of models: batches, cache blocks, sampling."""
