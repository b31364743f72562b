"""The methods of simplification, a file each."""
