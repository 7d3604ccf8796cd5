"""The five methods, a file each."""
