"""One rule per file, named as the field names it; found by looking, never listed."""
