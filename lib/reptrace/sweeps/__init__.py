"""Checkpoints x what is measured on them -> records, in this process or on a cluster."""
