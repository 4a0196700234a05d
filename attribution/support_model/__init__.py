"""The learned reader: how likely people would call each word of an answer unsupported by its chunks."""
