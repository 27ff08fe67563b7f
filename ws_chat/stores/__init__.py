"""Where generations are kept."""
