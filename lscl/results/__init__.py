"""Records -> one tidy table of all results, and what the book makes of it: statistics, labels, published numbers, figures, markdown, claims."""

from lscl.results.frames import classes_frame, costs_frame, frame, traffic_frame

__all__ = ["classes_frame", "costs_frame", "frame", "traffic_frame"]
