"""The built-in data sets, see README.md."""
