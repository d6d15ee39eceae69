"""Stages of the pipeline as tasks: each a thin wrapper round the core, resumable by its key."""
