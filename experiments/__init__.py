"""Research that uses the package."""
