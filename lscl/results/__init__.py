"""One tidy table of all records, and what the book makes of it: statistics, labels, figures, markdown, claims."""

from lscl.results.frames import classes_frame, costs_frame, frame, traffic_frame

__all__ = ["classes_frame", "costs_frame", "frame", "traffic_frame"]
