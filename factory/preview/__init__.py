"""Preview: what will be trained, token by token, before a weight is loaded: in a terminal, as JSON, and as a page."""
