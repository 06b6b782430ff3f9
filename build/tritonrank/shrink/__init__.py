"""Smaller models: pruning by measured importance, and distillation."""
