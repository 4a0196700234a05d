"""`python -m ragblame` is the console script."""

from importlib import import_module

if __name__ == "__main__":
    # by name: ragblame is the lowest floor and imports none of those above it
    import_module("ragblame.ui.cli").main()
