"""The same rounds over Flower: every client in a process of its own, on any machine. Needs the extra `flower`."""
