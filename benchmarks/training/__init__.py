"""Benchmarks of anybody's training: text, fine-tuning, loaders."""
