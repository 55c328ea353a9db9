"""Data sets decoded once into memory-mapped arrays, and the partition of their images over clients and tasks."""
