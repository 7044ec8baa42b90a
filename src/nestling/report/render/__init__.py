"""From a table value to what a terminal shows."""
