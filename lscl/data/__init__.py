"""Data: sources decoded once into memory-mapped arrays, the embedded glyphs, and the partition over clients and tasks."""
