"""A rollout: a new version is loaded, shown requests, given users step by step, and promoted or taken back by rules."""
