"""What can be looked at: one module for each group of pages, each with its PAGES (path to handler)."""
