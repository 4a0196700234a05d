"""A world with known causes, and the small language model that was really trained in it."""
