"""Methods side by side, on the same networks, data and measures: what the notebooks 07 to 09 show."""
