"""micro-ray."""
