"""Fed-LSCL: large-small model collaboration for federated continual learning, as a library behind a book."""

__version__ = "0.1.0"
