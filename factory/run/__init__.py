"""The parent's half of a run: its folder, the child, what is shown and tracked. No torch."""
