"""Fine-tuning: batches, losses, the trainer."""
