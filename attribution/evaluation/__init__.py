"""How right attribution and verdicts are: measured against known causes and human labels, never against
themselves."""
