"""A conversation in the terminal. `talk`: what was said, and the commands, without a terminal. `show`: the terminal."""
