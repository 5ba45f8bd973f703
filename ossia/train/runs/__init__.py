"""Runs that live in a folder: pretraining and fine-tuning, resumable at any step."""
