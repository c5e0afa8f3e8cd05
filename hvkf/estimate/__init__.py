"""What a configuration needs (memory, arithmetic, bytes), counted without weights and GPU."""
