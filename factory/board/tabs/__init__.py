"""The page's tabs, one module each: `build(page)` draws it inside the tab that is open."""
