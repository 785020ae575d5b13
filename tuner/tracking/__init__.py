"""The record in MLflow: what is noted, and how it gets there. The only package that imports MLflow."""
