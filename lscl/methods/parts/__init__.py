"""What several methods share: masked losses, averaging, the buffer, One-by-One Distillation."""
