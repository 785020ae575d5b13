"""Benchmarks of trainings, most of them without a study: text, fine-tuning, loaders, binary networks and others."""
