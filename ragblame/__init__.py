"""ragblame."""
